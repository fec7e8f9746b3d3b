"""From what a user gives to what is heard and what the model hears.

Heard is a stretch of the given sound. The model hears the same, or the same stretch of the isolated voice, without
what is no voice where that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wan_s2v.audio import Waveform, load_waveform
from wan_s2v.loudness import loudness_warnings
from wan_s2v.sound_span import SoundSpan
from wan_s2v.sound_track import AudioSource
from wan_s2v.voice_activity import keep_voice

Silence = Literal["keep", "clean"]
SILENCES: tuple[Silence, ...] = ("keep", "clean")
_SAME_LENGTH_S = 0.1  # what encoders pad


@dataclass(frozen=True)
class PreparedSound:
    """The stretch of sound that a video is made for, twice.

    Args:
        heard: as the file's sound track has it.
        driving: as the model hears it; of another length than `heard` where the voice is.
    """

    heard: Waveform
    driving: Waveform
    warnings: tuple[str, ...]


def prepare_sound(
    audio: AudioSource,
    *,
    vocals: AudioSource | None = None,
    span: SoundSpan,
    silence: Silence = "keep",
    limit_s: float | None = None,
) -> PreparedSound:
    """Read the stretch of a sound.

    Args:
        vocals: the isolated voice, which begins with the sound.
        silence: "clean" silences what is no voice, for the model alone.
        limit_s: read no more than so many seconds of the stretch.
    Raises: UsageError and MediaError subclasses, as `load_waveform`; UsageError where "clean" lacks its package.
    """
    duration_s = None if span.duration_s is None else float(span.duration_s)
    if limit_s is not None:
        duration_s = limit_s if duration_s is None else min(limit_s, duration_s)
    heard = load_waveform(audio, start_s=span.start_s, duration_s=duration_s)
    driving = heard if vocals is None else load_waveform(vocals, start_s=span.start_s, duration_s=duration_s)
    advice = [
        *_span_warnings(span, heard, duration_s),
        *_length_warnings(heard, driving),
        *loudness_warnings(driving),
    ]
    if silence == "clean":
        driving = keep_voice(driving)
    return PreparedSound(heard, driving, tuple(dict.fromkeys([*heard.warnings, *driving.warnings, *advice])))


def _span_warnings(span: SoundSpan, heard: Waveform, asked_s: float | None) -> list[str]:
    if span.duration_s is None or asked_s != float(span.duration_s) or heard.duration_s > asked_s - 1e-3:
        return []
    start = f" from {float(span.start_s):g} s on" if span.start_s else ""
    return [f"duration_s={asked_s:g} is more than there is: {heard.duration_s:.2f} s of sound{start}."]


def _length_warnings(heard: Waveform, driving: Waveform) -> list[str]:
    missing = heard.duration_s - driving.duration_s
    if abs(missing) <= _SAME_LENGTH_S:
        return []
    lengths = f"The vocals last {driving.duration_s:.2f} s, the sound {heard.duration_s:.2f} s"
    what = f"nothing drives the lips after {driving.duration_s:.2f} s" if missing > 0 else "the rest is left out"
    return [f"{lengths}: {what}. Both must begin at the same moment."]
