"""The outermost boxes of an mp4: read their places, and add one that carries somebody else's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from wan_s2v.errors import VideoError

_UUID: Final = b"uuid"


@dataclass(frozen=True)
class Box:
    """A box of a file: its four characters, where its content lies, and how long that is.

    Args:
        uuid: of a box of kind "uuid", whose content begins behind it.
    """

    kind: str
    offset: int
    size: int
    uuid: str | None = None


def read_boxes(path: str | Path) -> list[Box]:
    """The outermost boxes in order.

    Raises: VideoError for a file that is not made of boxes.
    """
    path = Path(path)
    end = path.stat().st_size
    with path.open("rb") as file:
        return list(_boxes(file, end, path))


def _boxes(file: BinaryIO, end: int, path: Path) -> Iterator[Box]:
    at = 0
    while at < end:
        file.seek(at)
        head = file.read(16)
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:  # the size follows in 8 bytes
            size, start = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:  # to the end of the file
            size = end - at
        if len(head) < 8 or size < start or at + size > end:
            raise VideoError(f"{path} is not made of mp4 boxes (at byte {at}). Pass a finished mp4.")
        kind, uuid = head[4:8].decode("latin-1"), None
        if head[4:8] == _UUID:
            file.seek(at + start)
            uuid, start = file.read(16).hex(), start + 16
        yield Box(kind, at + start, size - start, uuid)
        at += size


def read_content(path: str | Path, uuid: str) -> bytes | None:
    """What the first box of this uuid holds; None where there is none."""
    box = next((box for box in read_boxes(path) if box.uuid == uuid), None)
    if box is None:
        return None
    with Path(path).open("rb") as file:
        file.seek(box.offset)
        return file.read(box.size)


def append_content(path: str | Path, uuid: str, content: bytes) -> None:
    """Add a box of this uuid behind the others; nothing in the file moves."""
    with Path(path).open("ab") as file:
        file.write((24 + len(content)).to_bytes(4, "big") + _UUID + bytes.fromhex(uuid) + content)
