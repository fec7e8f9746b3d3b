"""Two experts against one transformer of the same active size: held-out loss per noise level, as table and drawing.

The same comparison as Wan2.2's: the baseline, only its high-noise part replaced by an expert, both parts replaced.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from documents import markdown

STAGES = ("transformer", "baseline", "high-noise", "low-noise")
TRUNK, BASELINE, HIGH, BOTH = "trunk", "baseline", "high-noise expert and baseline", "both experts"
_COLOURS = {BASELINE: "#666666", HIGH: "#2b6cb0", BOTH: "#c2410c"}
_LEGEND = {BASELINE: 60, HIGH: 250, BOTH: 580}  # x in pixels
_WIDTH, _HEIGHT = 860, 400
_TOP, _BOTTOM = 64, 350


@dataclass(frozen=True)
class Comparison:
    """Losses at the noise levels `sigmas`, by curve; the high-noise expert was measured from `boundary` on."""

    sigmas: tuple[float, ...]
    boundary: float
    curves: dict[str, tuple[float, ...]]
    training: dict[str, dict[str, Any]]

    @property
    def means(self) -> dict[str, float]:
        return {name: statistics.fmean(losses) for name, losses in self.curves.items()}

    def relative(self, name: str) -> list[float]:
        """Per cent by which a curve lies above the baseline."""
        return [100 * (a / b - 1) for a, b in zip(self.curves[name], self.curves[BASELINE], strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "sigmas": self.sigmas,
            "boundary": self.boundary,
            "losses": self.curves,
            "means": {name: round(mean, 5) for name, mean in self.means.items()},
            "training": self.training,
        }


def load_comparison(folder: Path) -> Comparison:
    """From the records `<stage>.json` of the training's stages.

    Raises: FileNotFoundError for the first record that is missing; KeyError for one without held-out losses.
    """
    records = {name: json.loads((folder / f"{name}.json").read_text()) for name in STAGES}
    losses = {
        name: {float(sigma): loss for sigma, loss in record["held_out"].items()} for name, record in records.items()
    }
    sigmas = tuple(sorted(losses["baseline"]))
    boundary = min(losses["high-noise"])
    high = losses["baseline"] | losses["high-noise"]
    both = losses["low-noise"] | losses["high-noise"]
    named = {TRUNK: losses["transformer"], BASELINE: losses["baseline"], HIGH: high, BOTH: both}
    curves = {name: tuple(found[sigma] for sigma in sigmas) for name, found in named.items()}
    told = ("steps", "seconds", "noise_range")
    training = {name: {key: record[key] for key in told} for name, record in records.items()}
    return Comparison(sigmas, boundary, curves, training)


def caption(comparison: Comparison) -> str:
    """How long each was trained and on what, which a comparison must say."""
    steps = {name: f"{record['steps']:,}" for name, record in comparison.training.items()}
    low, high = (comparison.training[name]["noise_range"] for name in ("low-noise", "high-noise"))
    return (
        f"The trunk was trained for {steps['transformer']} steps; from there, the baseline for {steps['baseline']} on "
        f"all noise levels, the high-noise expert for {steps['high-noise']} on those from {high[0]:g}, the low-noise "
        f"expert for {steps['low-noise']} on those up to {low[1]:g}. They change places at {comparison.boundary:g}."
    )


def table(comparison: Comparison) -> str:
    """Losses by noise level, then their means and the difference to the baseline."""
    names = list(comparison.curves)
    rows = [
        [f"{sigma:g}", *(f"{comparison.curves[name][row]:.4f}" for name in names)]
        for row, sigma in enumerate(comparison.sigmas)
    ]
    means = comparison.means
    change = [f"{100 * (means[name] / means[BASELINE] - 1):+.2f} %" for name in names]
    rows += [["**mean**", *(f"**{means[name]:.4f}**" for name in names)], ["against the baseline", *change]]
    return markdown(["noise level", *names], rows)


def draw(comparison: Comparison) -> str:
    """An SVG: the losses on the left, what the experts change on the right."""
    means = comparison.means
    legend = [
        f'<text x="{x}" y="24" fill="{_COLOURS[name]}">{name}: mean {means[name]:.4f}</text>'
        for name, x in _LEGEND.items()
    ]
    left = _panel(comparison, 60, 410, "held-out flow-matching loss", {n: list(comparison.curves[n]) for n in _COLOURS})
    right = _panel(comparison, 500, 850, "% above the baseline", {n: comparison.relative(n) for n in _COLOURS})
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
            ' font-size="13">',
            "<title>Held-out loss per noise level: baseline, only the high-noise expert, both experts</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *legend,
            *left,
            *right,
            "</svg>\n",
        ]
    )


def _panel(comparison: Comparison, left: int, right: int, title: str, curves: dict[str, list[float]]) -> list[str]:
    """Axes, boundary and curves over noise levels 0…1."""
    ticks = _ticks([value for losses in curves.values() for value in losses])

    def across(sigma: float) -> float:
        return left + sigma * (right - left)

    def down(value: float) -> float:
        return _BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_BOTTOM - _TOP)

    parts = [f'<text x="{left}" y="50">{title}</text>']
    for tick in ticks:
        y = down(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in range(0, 11, 2):
        x = across(step / 10)
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{step / 10:g}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_BOTTOM + 38}" text-anchor="middle">noise level</text>')
    x = across(comparison.boundary)
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}" stroke="#999999" stroke-dasharray="4 4"/>'
    )
    for name, losses in curves.items():
        points = " ".join(
            f"{across(sigma):.1f},{down(loss):.1f}" for sigma, loss in zip(comparison.sigmas, losses, strict=True)
        )
        # The high-noise expert's curve lies on another one on each side of the boundary: dashes let that show.
        dashes = ' stroke-dasharray="8 5"' if name == HIGH else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2.2"{dashes}/>')
    return parts


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, that enclose the values."""
    low, high = min(values), max(values)
    step = next(step for power in range(-6, 9) for step in _steps(power) if (high - low) / step <= 6)
    first, last = int(low // step), max(int(-(-high // step)), int(low // step) + 1)
    return [round(number * step, 9) for number in range(first, last + 1)]


def _steps(power: int) -> tuple[float, float, float]:
    return (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
