"""What a video file says about itself and its making, from its headers; no frame is decoded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av

from wan_s2v.content_credentials import MANIFEST_UUID, read_credentials
from wan_s2v.errors import VideoError, WanS2VError
from wan_s2v.marking import AIGC, XMP_UUID
from wan_s2v.mp4_boxes import Box, read_boxes, read_content
from wan_s2v.video import opened

_SOURCE_TYPE: Final = re.compile(r'DigitalSourceType\s*(?:=\s*"([^"]*)"|>\s*([^<]*?)\s*<)')
_CONTAINER_TAGS: Final = ("major_brand", "minor_version", "compatible_brands", "encoder")
_LABELS: Final = {"1": "AI-generated", "2": "may be AI-generated", "3": "suspected to be AI-generated"}


@dataclass(frozen=True)
class Inspection:
    """What was found in one file.

    Args:
        container: format, brands, duration, size, and whether it can be played while it loads.
        streams: codec, size, rate and length of each.
        tags: of the container, as players show them, without the label.
        aigc: the AIGC label (GB 45438-2025); its text where that is no JSON.
        digital_source_type: IPTC's term in the XMP packet.
        credentials: of C2PA, see `read_credentials`; None where there are none.
        sidecar: the record beside the file, FILE.json.
        notes: what could not be read, and why.
    """

    path: Path
    container: dict[str, Any]
    streams: list[dict[str, Any]]
    tags: dict[str, str]
    aigc: dict[str, Any] | str | None = None
    digital_source_type: str | None = None
    credentials: dict[str, Any] | None = None
    sidecar: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One sentence: what the file says it is."""
        label = self.aigc.get("Label") if isinstance(self.aigc, dict) else None
        sources = [self.digital_source_type or "", *_source_types(self.credentials)]
        if label in _LABELS:
            return f"The file says that it is {_LABELS[str(label)]}."
        if any(source.endswith("/trainedAlgorithmicMedia") for source in sources):
            return "The file says that it is AI-generated."
        return "The file does not say how it was made."


def inspect_file(path: str | Path) -> Inspection:
    """Read the headers, labels and credentials of a video, and the record beside it.

    Raises: UsageError for a path that cannot be opened; VideoError for a file that holds no video.
    """
    path = Path(path)
    notes: list[str] = []
    with opened(path) as container:
        streams = [_stream(stream) for stream in container.streams]
        tags = dict(container.metadata)
        found = {"format": container.format.name, "size_bytes": path.stat().st_size}
        if container.duration:
            found["duration_s"] = round(container.duration / av.time_base, 3)
    boxes = _boxes_of(path)
    if boxes:
        kinds = [box.kind for box in boxes]
        found["brands"] = [tags.get("major_brand", ""), tags.get("compatible_brands", "")]
        found["plays_while_loading"] = next((kind for kind in kinds if kind in ("moov", "mdat")), "") == "moov"
    return Inspection(
        path,
        found,
        streams,
        {name: value for name, value in tags.items() if name not in (*_CONTAINER_TAGS, AIGC)},
        _json_or_text(tags.get(AIGC)),
        _digital_source_type(path, boxes),
        _credentials(path, boxes, notes),
        _sidecar(path, notes),
        notes,
    )


def _stream(stream: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"type": stream.type, "codec": stream.codec_context.name if stream.codec_context else None}
    if stream.type == "video":
        rate = stream.average_rate
        about |= {"width": stream.width, "height": stream.height, "fps": round(float(rate), 3) if rate else None}
        about |= {"num_frames": stream.frames or None, "pixel_format": stream.pix_fmt}
    elif stream.type == "audio":
        about |= {"sample_rate": stream.sample_rate, "channels": stream.channels}
    if stream.duration is not None and stream.time_base is not None:
        about["duration_s"] = round(float(stream.duration * stream.time_base), 3)
    return about


def _boxes_of(path: Path) -> list[Box]:
    """The boxes of an mp4; none of another container."""
    try:
        return read_boxes(path)
    except VideoError:
        return []


def _json_or_text(text: str | None) -> dict[str, Any] | str | None:
    try:
        label = json.loads(text or "null")
    except ValueError:
        return text
    return label if isinstance(label, dict) else text


def _digital_source_type(path: Path, boxes: list[Box]) -> str | None:
    if not any(box.uuid == XMP_UUID for box in boxes):
        return None
    packet = (read_content(path, XMP_UUID) or b"").decode("utf-8", errors="replace")
    found = _SOURCE_TYPE.search(packet)
    return None if found is None else found[1] or found[2]


def _credentials(path: Path, boxes: list[Box], notes: list[str]) -> dict[str, Any] | None:
    if not any(box.uuid == MANIFEST_UUID for box in boxes):
        return None
    try:
        return read_credentials(path)
    except WanS2VError as error:
        notes.append(str(error))
        return {"state": "not read", "problems": [], "signer": {}, "made_by": [], "actions": []}


def _sidecar(path: Path, notes: list[str]) -> dict[str, Any] | None:
    beside = path.with_name(f"{path.name}.json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{beside} cannot be read as JSON ({error}).")
        return None
    return record if isinstance(record, dict) else None


def _source_types(credentials: dict[str, Any] | None) -> list[str]:
    return [action.get("digitalSourceType", "") for action in (credentials or {}).get("actions", [])]
