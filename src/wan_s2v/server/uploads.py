"""A request's body → files under fixed names, and options; what a file is named or claimed to be is never read."""

from __future__ import annotations

import difflib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_s2v.server.fetch import fetch
from wan_s2v.server.limits import MIB, Limits
from wan_s2v.server.problems import Problem
from wan_s2v.server.schemas import LONGEST_TEXT, VideoOptions

FILES: Final = ("image", "audio", "vocals", "pose_video")
SPEECH: Final = ("text", "voice")
_MOST_FIELDS: Final = 100
_FIELD_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Upload:
    """What a client sent.

    Args:
        folder: with the files; removed unless a job takes it over.
        params: the options that were given, as keywords of the pipeline, and "styles".
    """

    folder: Path
    params: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


class BodyLimit:
    """Refuses bodies larger than all files of a job together, also those that do not say how large they are."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._most = app, len(FILES) * limits.upload_bytes + MIB

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise _too_large("The request", self._most)
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


@asynccontextmanager
async def received(request: Request, incoming: Path, limits: Limits, *, allow_urls: bool) -> AsyncIterator[Upload]:
    """The body of a request as files and options, for as long as it is needed.

    Raises: Problem for whatever cannot be accepted; the content of files is not looked at.
    """
    folder = Path(tempfile.mkdtemp(dir=incoming))
    try:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            async with request.form(max_files=len(FILES), max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES) as form:
                params = await run_in_threadpool(_from_form, form, folder, limits)
        elif kind == "application/json" and allow_urls:
            params = await run_in_threadpool(_from_json, await request.body(), folder, limits)
        else:
            also = " or application/json" if allow_urls else "; JSON with addresses needs a server with --allow-urls"
            raise Problem(
                "unsupported_media", f"Content-Type {kind[:64]!r} is not read. Send multipart/form-data{also}."
            )
        yield Upload(folder, params)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # not there any more if a job took it


def _from_form(form: FormData, folder: Path, limits: Limits) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for name in form:
        values = form.getlist(name)
        if name in FILES:
            if len(values) > 1 or not isinstance(values[0], UploadFile):
                raise Problem("invalid", f"{name} is not one file. Send it as one file of the form.")
            _save(values[0], folder / name, limits)
            continue
        if any(isinstance(value, UploadFile) for value in values):
            raise Problem("invalid", f"{name[:64]!r} is a file. Files are {', '.join(FILES)}; send the others as text.")
        if name != "style" and len(values) > 1:
            raise Problem("invalid", f"{name[:64]} is given {len(values)} times. Give it once.")
        given = [value for value in values if value != ""]  # a form sends what was left empty, too
        if given:
            texts[name] = given if name == "style" else given[0]
    return _checked(texts, {path.name for path in folder.iterdir()})


def _save(upload: UploadFile, path: Path, limits: Limits) -> None:
    if (upload.size or 0) > limits.upload_bytes:
        raise _too_large(path.name, limits.upload_bytes)
    with path.open("xb") as file:
        shutil.copyfileobj(upload.file, file)


def _from_json(body: bytes, folder: Path, limits: Limits) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as error:
        raise Problem("bad_request", f"The body is not JSON ({error}). Send one object.") from error
    except RecursionError as error:
        raise Problem("bad_request", "The body is nested too deeply. Send one flat object.") from error
    if not isinstance(content, dict):
        raise Problem("bad_request", f"The body is a JSON {type(content).__name__}. Send one object.")
    addresses = {name: content.pop(f"{name}_url", None) for name in FILES}
    given = {name: address for name, address in addresses.items() if address is not None}
    params = _checked({name: value for name, value in content.items() if value is not None}, set(given))
    for name, address in given.items():
        if not isinstance(address, str):
            raise Problem("invalid", f"{name}_url is a {type(address).__name__}. Give an address as text.")
        fetch(address, folder / name, limits.upload_bytes)
    return params


def _checked(texts: Mapping[str, Any], files: set[str]) -> dict[str, Any]:
    """The options as keywords of the pipeline. Raises: Problem for the first that is not accepted."""
    texts = dict(texts)
    speech: dict[str, Any] = {name: texts.pop(name) for name in SPEECH if name in texts}
    for given in speech:
        _check_speech(given, speech, files)
    for name in ("image", "audio"):
        if name not in files and not (name == "audio" and speech):
            raise Problem("invalid", f"There is no {name}. Send it as a file of the form.")
    try:
        options = VideoOptions.model_validate(texts)
    except ValidationError as error:
        raise Problem("invalid", _describe(error)) from error
    params = options.model_dump(exclude_unset=True)
    styles = params.pop("style", [])
    return params | speech | ({"styles": styles} if styles else {})


def _check_speech(name: str, speech: Mapping[str, Any], files: set[str]) -> None:
    """Raises: Problem for a text that cannot be spoken here."""
    if find_spec("wan_s2v.speech_synthesis") is None:
        raise Problem("invalid", f"{name} needs text to speech, which is not installed. Send the voice as audio.")
    if "audio" in files or "text" not in speech:
        raise Problem(
            "invalid", f"{name} is given, but {'audio is, too' if 'audio' in files else 'no text'}. Send one."
        )
    if not isinstance(speech[name], str) or len(speech[name]) > LONGEST_TEXT:
        raise Problem("invalid", f"{name} is not text of at most {LONGEST_TEXT} characters. Shorten it.")


def _describe(error: ValidationError) -> str:
    """The first thing that is wrong, on one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])[:64]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, [*VideoOptions.model_fields, *FILES], n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(VideoOptions.model_fields)}."
        return f"{name!r} is not an option. {hint}"
    return f"{name}={str(first['input'])[:64]!r} is not accepted: {first['msg']}. Correct it, or leave it out."


def _too_large(what: str, most: int) -> Problem:
    return Problem(
        "too_large", f"{what} has more than {most / MIB:g} MiB, the most that is accepted. Send a smaller one."
    )
