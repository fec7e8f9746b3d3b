"""What the OpenAPI document says beyond the routes' own types: the forms that carry files, and the errors."""

from __future__ import annotations

from typing import Any, Final

from wan_s2v.server.problems import STATUS
from wan_s2v.server.schemas import ErrorBody, VideoOptions
from wan_s2v.server.uploads import FILES

_MEANINGS: Final = {
    400: "The request cannot be read.",
    401: "There is no valid token.",
    403: "A server without tokens was asked in another name than this machine's.",
    404: "There is no such video, or it is another owner's.",
    409: "Not in this state of the video.",
    413: "A file is too large or lasts too long.",
    415: "A file is damaged or of a kind that is not read.",
    422: "An option or a file is missing or not accepted.",
    429: "Too many jobs or requests at once.",
    503: "A process has ended and starts again.",
    507: "The disk is full of jobs that wait.",
}
_FILE: Final = {"type": "string", "format": "binary"}


def problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are no success; who asks is checked on every one."""
    codes = {STATUS[kind] for kind in ("unauthorized", "forbidden", *kinds)}
    return {code: {"model": ErrorBody, "description": _MEANINGS[code]} for code in sorted(codes)}


def submission(*, allow_urls: bool) -> dict[str, Any]:
    """The body of a route that takes inputs and options."""
    options = VideoOptions.model_json_schema()["properties"]
    speech = {"text": {"type": "string"}, "voice": {"type": "string"}}
    form = dict.fromkeys(FILES, _FILE) | speech | options
    content = {"multipart/form-data": {"schema": _object(form, ["image"])}}
    if allow_urls:
        addresses = {f"{name}_url": {"type": "string", "format": "uri"} for name in FILES}
        content["application/json"] = {"schema": _object(addresses | speech | options, ["image_url"])}
    return {"requestBody": {"required": True, "content": content}}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
