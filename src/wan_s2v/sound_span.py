"""Which stretch of a sound is used: the model hears it, and the file's sound track is exactly the same stretch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Final

from wan_s2v.audio import MIN_SAMPLES, MODEL_SAMPLE_RATE
from wan_s2v.errors import UsageError

_CLOCK: Final = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)")
MAX_SECONDS: Final = 10**6


@dataclass(frozen=True)
class SoundSpan:
    """A stretch of sound from `start_s` on; to the end of the sound where `duration_s` is None.

    Both are on the grid of the model's 16 kHz, which are samples of the file's 48 kHz, too.
    """

    start_s: Fraction = Fraction(0)
    duration_s: Fraction | None = None

    def samples(self, rate: int) -> tuple[int, int | None]:
        """How many samples to leave out and how many to take, at a multiple of 16 kHz."""
        return round(self.start_s * rate), None if self.duration_s is None else round(self.duration_s * rate)


WHOLE: Final = SoundSpan()


def span_of(start_s: float | str | None, duration_s: float | str | None) -> SoundSpan:
    """The stretch that a user asks for.

    Raises: UsageError for what is no time, and for a stretch too short to hear.
    """
    start = Fraction(0) if start_s is None else as_seconds("start_s", start_s)
    duration = None if duration_s is None else as_seconds("duration_s", duration_s)
    if duration is not None and duration * MODEL_SAMPLE_RATE < MIN_SAMPLES:
        least = f"{MIN_SAMPLES / MODEL_SAMPLE_RATE:.3f} s"
        raise UsageError(f"duration_s={duration_s} leaves nothing to hear. Give at least {least}, or leave it out.")
    return SoundSpan(start, duration)


def as_seconds(name: str, value: float | str) -> Fraction:
    """Seconds from a number or from text such as "83", "1:23.5" or "1:02:03", on the grid of samples.

    Raises: UsageError for anything else, and outside 0…1,000,000 s.
    """
    seconds = _clock_time(value) if isinstance(value, str) else _number(value)
    if seconds is None or not 0 <= seconds <= MAX_SECONDS:
        raise UsageError(f"{name}={value!r} is not a time in a sound. Give seconds (83.5) or minutes (1:23.5).")
    return Fraction(round(seconds * MODEL_SAMPLE_RATE), MODEL_SAMPLE_RATE)


def _number(value: float) -> Fraction | None:
    if isinstance(value, bool) or not isinstance(value, Real) or value != value or abs(value) == float("inf"):
        return None
    return Fraction(value) if isinstance(value, int | Fraction) else Fraction(float(value))


def _clock_time(text: str) -> Fraction | None:
    found = _CLOCK.fullmatch(text.strip())
    if found is None or (found[2] is not None and Fraction(found[3]) >= 60):
        return None
    hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
