"""Measured clips into the rows that the documentation shows, and those into the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from embedded_clips import LANGUAGES, LONG_CLIPS

LEAD_FRAMES = 3  # of the picture under timing="reference"

Record = dict[str, Any]
Side = Literal["found", "truth"]


@dataclass(frozen=True)
class Row:
    """One measure.

    Args:
        result, truth: of the generated clips and of the rendered ones; None where nothing was measured.
        at_least, under: what it must reach, if anything.
        style: of the numbers, as for `format`, with their unit.
        count: videos that were measured.
    """

    measure: str
    result: float | None
    truth: float | None = None
    at_least: float | None = None
    under: float | None = None
    style: str = "{:.2f}"
    count: int = 0

    @property
    def reached(self) -> bool | None:
        """None where there is no goal or no result."""
        if self.result is None or (self.at_least is None and self.under is None):
            return None
        return self.result >= self.at_least if self.at_least is not None else self.result < (self.under or 0)

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"at least {self.style.format(self.at_least)}"
        return "" if self.under is None else f"under {self.style.format(self.under)}"

    def cells(self) -> list[str]:
        result = "–" if self.result is None else self.style.format(self.result)
        missed = " (missed)" if self.reached is False else ""
        return [self.measure, self.goal, result + missed, "" if self.truth is None else self.style.format(self.truth)]


def summarise(records: Sequence[Record]) -> list[Row]:
    """The whole table, from the records of `embedded_clips.judge`."""
    held = [record for record in records if record["kind"] == "held-out"]
    still = [record for record in held if record["still"]]
    reference = [record for record in records if record["kind"] == "reference"]
    return [
        *_sync_rows(held, reference),
        _row("PSNR outside mouth and eyes, still clips, median", still, "psnr_db", at_least=30, style="{:.1f} dB"),
        _row("SSIM there", still, "ssim", style="{:.3f}"),
        _row("PSNR outside mouth and eyes, all clips, median", held, "psnr_db", style="{:.1f} dB"),
        _drift_row(records),
        *_confidence_rows(records, held),
        _row("sharpness of the first 4 frames, relative to the rest", held, "first_frames_sharpness"),
        _row("change where clips meet, relative to that nearby", held, "seam_ratio"),
        _row("flicker outside mouth and eyes, levels of 255", held, "flicker"),
        _own_row("length error of the file, longest", held, "length_error_frames", max, 1, "{:.2f} frames"),
        _own_row("time per clip, median", held, "seconds", statistics.median, None, "{:.2f} s"),
    ]


def _sync_rows(held: Sequence[Record], reference: Sequence[Record]) -> list[Row]:
    correlation, lag = "opening_correlation", "opening_lag_frames"
    rows = [
        _row("mouth opening against the phonemes, lag 0, median", held, correlation, at_least=0.85, style="{:.3f}"),
        _row("the same, 10th percentile", held, correlation, _tenth, at_least=0.75, style="{:.3f}"),
    ]
    for code, name in LANGUAGES.items():
        spoken = [record for record in held if record["language"] == code]
        rows.append(_row(f"the same, {name}, median", spoken, correlation, at_least=0.8, style="{:.3f}"))
    leading = f'best with the picture {LEAD_FRAMES} frames early, `timing="reference"`'
    return [
        *rows,
        _row('best at lag 0, `timing="aligned"`', held, lag, _share(0), at_least=0.95, style="{:.1%}"),
        _row(leading, reference, lag, _share(LEAD_FRAMES), style="{:.1%}"),
        _pooled("m, b and p with closed lips, within 1 frame", held, "closure_rate", "closures", 0.9),
        _pooled("mouth closed in silences over 0.4 s", held, "closed_in_silence", "silent_frames", 0.95),
    ]


def _confidence_rows(records: Sequence[Record], held: Sequence[Record]) -> list[Row]:
    """Of the sync scorer: synthetic voices, then each recording relative to these."""
    synthetic = _row("sync confidence, held-out voices, median", held, "sync_confidence", style="{:.3f}")
    rows = [synthetic, _row("sync offset 0 by the scorer", held, "sync_offset_frames", _share(0), style="{:.1%}")]
    for name in sorted({record["recording"] for record in records if record["kind"] == "recording"}):
        heard = [record for record in records if record["recording"] == name]
        own = _row(f"sync confidence, recorded {name}, median", heard, "sync_confidence", style="{:.3f}")
        share = None if own.result is None or not synthetic.result else own.result / synthetic.result
        relative = Row("the same, relative to held-out voices", share, None, 0.9, None, "{:.0%}", own.count)
        rows += [own, relative]
    return rows


def _drift_row(records: Sequence[Record]) -> Row:
    """Mean over the long runs of the distance between their first and last clip."""
    runs = [record for record in records if record["kind"] == "long" and record["clips"] == LONG_CLIPS]
    measure = f"colour distance (ΔE) between clip 1 and clip {LONG_CLIPS}, mean"
    found, truth = ([drift[-1] for drift in _values(runs, "colour_drift", side)] for side in ("found", "truth"))
    return Row(measure, _of(found, statistics.fmean), _of(truth, statistics.fmean), under=2, count=len(runs))


def _row(
    measure: str,
    records: Sequence[Record],
    name: str,
    reduce: Callable[[list[float]], float] = statistics.median,
    *,
    at_least: float | None = None,
    style: str = "{:.2f}",
) -> Row:
    found, truth = _values(records, name, "found"), _values(records, name, "truth")
    return Row(measure, _of(found, reduce), _of(truth, reduce), at_least, None, style, len(found))


def _own_row(
    measure: str, records: Sequence[Record], name: str, reduce: Callable[[list[float]], float], under: float | None,
    style: str,
) -> Row:  # fmt: skip
    """Of something that the rendered clips do not have."""
    values = [record[name] for record in records if record[name] is not None]
    return Row(measure, _of(values, reduce), None, None, under, style, len(values))


def _pooled(measure: str, records: Sequence[Record], name: str, weight: str, at_least: float) -> Row:
    """A share of all closures or frames of all clips."""

    def share(side: Side) -> tuple[float | None, int]:
        parts = [
            (record[side][name], record[weight])
            for record in records
            if record[side] and record[side][name] is not None
        ]
        total = sum(count for _, count in parts)
        return (sum(value * count for value, count in parts) / total if total else None), len(parts)

    result, count = share("found")
    return Row(measure, result, share("truth")[0], at_least, None, "{:.1%}", count)


def _values(records: Sequence[Record], name: str, side: Side) -> list[Any]:
    return [record[side][name] for record in records if record[side] and record[side][name] is not None]


def _of(values: list[float], reduce: Callable[[list[float]], float]) -> float | None:
    return float(reduce(values)) if values else None


def _tenth(values: list[float]) -> float:
    return float(np.percentile(values, 10))


def _share(wanted: int) -> Callable[[list[float]], float]:
    return lambda values: sum(value == wanted for value in values) / len(values)
