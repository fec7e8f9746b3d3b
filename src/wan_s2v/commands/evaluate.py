"""`wan-s2v evaluate`: the measures of finished videos as a table or as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from rich.console import Console
from rich.table import Table

from wan_s2v.errors import UsageError, WanS2VError
from wan_s2v.evaluation import Evaluation, evaluate_video, load_readers
from wan_s2v.image import load_image

_VIDEOS_A_TABLE: Final = 4


@dataclass(frozen=True)
class Finding:
    """One video with its evaluation, or the reason why there is none."""

    path: Path
    evaluation: Evaluation | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        if self.evaluation is None:
            return {"path": str(self.path), "status": "failed", "error": self.error}
        return {"path": str(self.path), "status": "done", **self.evaluation.to_json()}


def evaluate_files(videos: Sequence[Path], image: Path | None, report: Callable[[str], None]) -> list[Finding]:
    """Measure each video; one that cannot be read does not keep the others from being measured.

    Args:
        image: the portrait that all of them show.
        report: told what is being done, one line a video.
    Raises: UsageError for a path that is no file; ImageError for the picture; CheckpointError without the weights of
        the readers.
    """
    for path in videos:
        if not path.is_file():
            raise UsageError(f"There is no video at {path}. Check the path.")
    reference: Image.Image | None = None if image is None else load_image(image).image
    readers = load_readers()
    findings = []
    for number, path in enumerate(videos, 1):
        report(f"{number}/{len(videos)} {path}")
        try:
            findings.append(Finding(path, evaluate_video(path, reference=reference, readers=readers)))
        except WanS2VError as error:
            findings.append(Finding(path, error=str(error)))
    return findings


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Measured videos side by side, a few to a table, then what was left out of which."""
    measured = [(finding.path, finding.evaluation) for finding in findings if finding.evaluation is not None]
    for first in range(0, len(measured), _VIDEOS_A_TABLE):
        part = measured[first : first + _VIDEOS_A_TABLE]
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("measure", no_wrap=True)
        for path, _ in part:
            table.add_column(path.name, justify="right", overflow="fold")
        columns = [_cells(evaluation) for _, evaluation in part]
        for name in columns[0]:
            table.add_row(name, *(column[name] for column in columns))
        console.print(table)
    for path, evaluation in measured:
        for note in evaluation.notes:
            console.print(f"{path.name}: {note}", soft_wrap=True)


def _cells(evaluation: Evaluation) -> dict[str, str]:
    drift = [distance for distance in evaluation.colour_drift if distance is not None]
    return {
        "frames judged, at 16 fps": str(evaluation.num_frames),
        "lip sync: picture leads by (frames)": _text(evaluation.sync_offset_frames, "+d"),
        "lip sync: confidence": _text(evaluation.sync_confidence, ".3f"),
        "mouth shut in silence (% of frames)": _text(evaluation.closed_in_silence, ".0%").rstrip("%"),
        "identity: PSNR (dB)": _text(evaluation.psnr_db, ".2f"),
        "identity: SSIM": _text(evaluation.ssim, ".4f"),
        "colour drift, last clip (ΔE 1976)": _text(drift[-1] if drift else None, ".2f"),
        "colour drift, worst clip (ΔE 1976)": _text(max(drift) if drift else None, ".2f"),
        "sharpness of first frames (1 = as the rest)": _text(evaluation.first_frames_sharpness, ".2f"),
        "seams (1 = none)": _text(evaluation.seam_ratio, ".2f"),
        "flicker (levels of 255)": _text(evaluation.flicker, ".2f"),
        "length error (s)": _text(evaluation.length_error_s, ".3f"),
        "length error (frames)": _text(evaluation.length_error_frames, ".2f"),
    }


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
