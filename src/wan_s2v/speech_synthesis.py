"""Text → speech, where there is no recording: by espeak-ng, or by voices for piper that lie in a folder.

espeak-ng ships in a wheel and speaks about 140 languages, like a machine. A piper voice is a file NAME.onnx with its
NAME.onnx.json; they are looked for in WAN_S2V_VOICES, else ~/.local/share/wan_s2v/voices. Nothing is downloaded.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import soxr

from wan_s2v.audio import MODEL_SAMPLE_RATE
from wan_s2v.errors import UsageError
from wan_s2v.espeak import Espeak
from wan_s2v.loudness import measure_loudness
from wan_s2v.styles import is_chinese

Engine = Literal["espeak-ng", "piper"]

_ALIASES: Final = {"zh": "cmn"}  # espeak-ng names Mandarin by its own code
_WORDS_A_MINUTE: Final = 160
_LOUDNESS, _PEAK = -20.0, 0.9  # LUFS, of full scale
_FOLDER_VARIABLE: Final = "WAN_S2V_VOICES"


@dataclass(frozen=True)
class Speech:
    """A text as sound.

    Args:
        samples: (n,) float32 at `sample_rate`, at the loudness of a recording.
        voice: that spoke, by name.
    """

    samples: np.ndarray
    sample_rate: int
    voice: str
    engine: Engine


def voices() -> dict[str, Engine]:
    """Every voice that can speak here, by name. Those of espeak-ng take a timbre behind a plus, such as "en+f3".

    Raises: UsageError where neither espeak-ng nor a piper voice is there.
    """
    found: dict[str, Engine] = dict.fromkeys(_piper_voices(), "piper")
    try:
        languages = Espeak().languages()
    except UsageError:
        if not found:
            raise
        return found
    spoken: dict[str, Engine] = dict.fromkeys(sorted({*languages, *_ALIASES}), "espeak-ng")
    return spoken | found


def synthesize(text: str, voice: str | None = None) -> Speech:
    """Speak a text.

    Args:
        voice: one of `voices`; by the script of the text if None: "zh" for Chinese characters, else "en".
    Raises: UsageError for an empty text, a voice that is not there, or an engine that is not installed.
    """
    if not text.strip():
        raise UsageError('text="" has nothing to say. Give the words to speak, or a sound in its place.')
    name = voice or ("zh" if is_chinese(text) else "en")
    if name in _piper_voices():
        return _levelled(*_speak_with_piper(text, name), name, "piper")
    language, plus, timbre = name.partition("+")
    spoken = Espeak().speak(
        text,
        f"{_ALIASES.get(language, language)}{plus}{timbre}",
        rate=_WORDS_A_MINUTE,
        pitch=50,
        pitch_range=50,
        volume=60,
    )
    return _levelled(spoken.samples.astype(np.float32) / 32768, spoken.sample_rate, name, "espeak-ng")


def voices_folder() -> Path:
    """Where voices for piper are looked for."""
    return Path(os.environ.get(_FOLDER_VARIABLE) or Path.home() / ".local/share/wan_s2v/voices")


def _piper_voices() -> dict[str, Path]:
    folder = voices_folder()
    models = sorted(folder.glob("*.onnx")) if folder.is_dir() else []
    return {path.stem: path for path in models if path.with_name(f"{path.name}.json").is_file()}


def _speak_with_piper(text: str, name: str) -> tuple[np.ndarray, int]:
    try:
        from piper import PiperVoice
    except ImportError:
        raise UsageError(
            f"Voice {name} is for piper, which is not installed. Run: pip install piper-tts, or choose another voice."
        ) from None
    chunks = list(PiperVoice.load(_piper_voices()[name]).synthesize(text))
    if not chunks:
        raise UsageError(f"Text {text!r} holds nothing that voice {name} can say. Give words of its language.")
    return np.concatenate([chunk.audio_float_array for chunk in chunks]).astype(np.float32), chunks[0].sample_rate


def _levelled(samples: np.ndarray, sample_rate: int, name: str, engine: Engine) -> Speech:
    """At -20 LUFS, or as loud as the peaks allow."""
    measured = measure_loudness(soxr.resample(samples, sample_rate, MODEL_SAMPLE_RATE))
    peak = float(np.abs(samples).max(initial=0))
    gain = 1.0
    if math.isfinite(measured.integrated):
        gain = min(10 ** ((_LOUDNESS - measured.integrated) / 20), _PEAK / peak)
    return Speech(samples * np.float32(gain), sample_rate, name, engine)
