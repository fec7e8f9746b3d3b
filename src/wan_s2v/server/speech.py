"""Text in place of a recording, where this installation can speak."""

from __future__ import annotations

import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from wan_s2v.errors import UsageError

_FULL_SCALE: Final = 32767


def can_speak() -> bool:
    return find_spec("wan_s2v.speech_synthesis") is not None


def voice_names() -> list[str]:
    """Voices by name; none where no engine is installed."""
    if not can_speak():
        return []
    from wan_s2v.speech_synthesis import voices

    try:
        return list(voices())
    except UsageError:
        return []


def write_speech(text: str, voice: str | None, path: Path) -> None:
    """Speak a text into a wav file. Raises: UsageError for a voice that is not there."""
    from wan_s2v.speech_synthesis import synthesize

    spoken = synthesize(text, voice)
    with path.open("wb") as file, wave.open(file, "wb") as writer:
        writer.setparams((1, 2, spoken.sample_rate, 0, "NONE", ""))
        writer.writeframes((spoken.samples * _FULL_SCALE).astype(np.int16).tobytes())
