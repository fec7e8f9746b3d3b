"""Prompts that change with time: "0-4: she smiles | 4-: she looks away".

A prompt is such a list only if it has at least two parts, divided by |, and begins with a time span and a colon;
whatever else it holds, a prompt without both is plain text. Spans follow each other from 0 without gaps, the last one
may be open. What a clip is, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

from wan_s2v.errors import UsageError
from wan_s2v.sound_span import as_seconds

_TIME: Final = r"\d+(?::[0-5]\d)?(?:\.\d+)?"
_HEAD: Final = re.compile(rf"\s*({_TIME})\s*s?\s*[-–]\s*(?:({_TIME})\s*s?\s*)?[:：]")  # full-width colons, too
_BAR: Final = re.compile(r"[|｜]")
_TOLERANCE_S: Final = Fraction(1, 10)  # a list for "5 s" fits a recording of 5.02 s
_EXAMPLE: Final = '"0-4: she smiles | 4-: she looks away"'


@dataclass(frozen=True)
class PromptSpan:
    """A prompt and the seconds of video that it is for; `stop_s` is None where it is for all that follows."""

    start_s: Fraction
    stop_s: Fraction | None
    prompt: str

    def overlap(self, start_s: Fraction, stop_s: Fraction) -> Fraction:
        """Seconds that this span has in common with another."""
        stop = stop_s if self.stop_s is None else min(self.stop_s, stop_s)
        return max(stop - max(self.start_s, start_s), Fraction(0))

    def __str__(self) -> str:
        return f"{_time_text(self.start_s)}-{'' if self.stop_s is None else _time_text(self.stop_s)}"


def read_spans(prompt: str) -> tuple[PromptSpan, ...]:
    """The spans of a prompt; one open span for plain text.

    Raises: UsageError, which names the part, for a list with a part that has no times or no text, a gap or an overlap.
    """
    parts = _BAR.split(prompt)
    if len(parts) == 1 or _HEAD.match(parts[0]) is None:
        return (PromptSpan(Fraction(0), None, prompt),)
    spans = [_read_span(number, part) for number, part in enumerate(parts, start=1)]
    if spans[0].start_s != 0:
        raise UsageError(f"The prompts begin at {_time_text(spans[0].start_s)} s, not at 0. Write them as {_EXAMPLE}.")
    for number, (before, span) in enumerate(pairwise(spans), start=2):
        if before.stop_s != span.start_s:
            raise UsageError(_seam_problem(number, before, span))
    return tuple(spans)


def map_prompts(prompt: str, change: Callable[[str], str]) -> str:
    """The prompt with the text of every span changed and the times as they were."""
    spans = read_spans(prompt)
    if len(spans) == 1:
        return change(prompt)
    return " | ".join(f"{span}: {change(span.prompt)}" for span in spans)


def prompts_of(spans: Sequence[PromptSpan], stretches: Sequence[tuple[Fraction, Fraction]]) -> tuple[str, ...]:
    """The prompt of each stretch of video (start and stop in seconds): of the span that has the largest share of it.

    Raises: UsageError if the last span ends before the video.
    """
    end = max(stop for _, stop in stretches)
    last = spans[-1].stop_s
    if last is not None and last < end - _TOLERANCE_S:
        raise UsageError(
            f"The prompts end at {_time_text(last)} s, the video at {float(end):.2f} s. "
            f"Leave the end of the last one open: {_time_text(spans[-1].start_s)}-: …"
        )
    return tuple(max(spans, key=lambda span: span.overlap(*stretch)).prompt for stretch in stretches)


def unused_warnings(spans: Sequence[PromptSpan], prompts: Sequence[str]) -> list[str]:
    """A sentence for each span whose prompt no clip takes."""
    return [
        f"No clip takes the prompt of {span} s: a clip has one prompt, that of its larger share. Make clips shorter "
        "with frames_per_clip, or the span longer."
        for span in spans
        if span.prompt not in prompts
    ]


def _read_span(number: int, part: str) -> PromptSpan:
    head = _HEAD.match(part)
    if head is None:
        raise UsageError(f"Part {number} of the prompt, {part.strip()!r}, has no times. Write it as in {_EXAMPLE}.")
    text = part[head.end() :].strip()
    start, stop = as_seconds("prompt", head[1]), None if head[2] is None else as_seconds("prompt", head[2])
    span = PromptSpan(start, stop, text)
    if not text:
        raise UsageError(f"Part {number} of the prompt ({span} s) has no text. Write it as in {_EXAMPLE}.")
    if stop is not None and stop <= start:
        raise UsageError(f"Part {number} of the prompt ({span} s) ends before it begins. Give the earlier time first.")
    return span


def _seam_problem(number: int, before: PromptSpan, span: PromptSpan) -> str:
    start = _time_text(span.start_s)
    if before.stop_s is None:
        return f"Part {number - 1} of the prompt ({before} s) is open, but part {number} follows. End it at {start}."
    kind = "overlap" if span.start_s < before.stop_s else "leave a gap"
    stop = _time_text(before.stop_s)
    parts = f"Parts {number - 1} and {number} of the prompt ({before} s, {span} s)"
    return f"{parts} {kind}. Begin part {number} at {stop}."


def _time_text(seconds: Fraction) -> str:
    return f"{float(seconds):.4f}".rstrip("0").rstrip(".")
