"""`out.mp4.json`: what made a video, complete enough to make it again.

Its form is docs/sidecar.schema.json; `SCHEMA_VERSION` changes with it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from wan_s2v.errors import OutputError, UsageError, reason_of
from wan_s2v.partial_run import write_atomically

SCHEMA_VERSION: Final = 1
SUFFIX: Final = ".json"
_PART: Final = 1 << 20


def sidecar_path(output: Path) -> Path:
    """`out.mp4.json` of `out.mp4`."""
    return output.with_name(output.name + SUFFIX)


def write_sidecar(output: Path, record: dict[str, Any]) -> Path:
    """Put the record of a video beside it, in one step. Raises: OutputError."""
    path = sidecar_path(output)
    temporary = path.with_name(f".{path.name}.new")
    try:
        write_atomically(path, temporary, json.dumps(record, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written ({reason_of(error)}). The video is whole; free space to keep its record."
        ) from error
    return path


def read_sidecar(path: Path) -> dict[str, Any]:
    """The record of a video. Raises: UsageError for what is no such file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}. Pass the .mp4.json that lies beside a video.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({reason_of(error)}). Pass the .mp4.json beside a video.") from error
    found = record.get("schema_version") if isinstance(record, dict) else None
    if found != SCHEMA_VERSION or not isinstance(record.get("request"), dict):
        raise UsageError(
            f"{path} has schema_version {found}; {SCHEMA_VERSION} is read. Pass the .mp4.json that wan-s2v wrote."
        )
    return record


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Raises: UsageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_PART):
                digest.update(part)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({reason_of(error)}). Check the path.") from error
    return digest.hexdigest()
