"""What silence="clean" does to the embedded model's mouths: nothing to clean voices, and shut in music between them.

Each demo voice drives two demo portraits, alone and with chords in a pause of 1.2 s; every video is made with "keep"
and "clean" and the same seed, and judged against the voice alone.

    python benchmarks/silence.py [--portraits 2]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wan_s2v import WanS2VPipeline
from wan_s2v.audio import load_waveform
from wan_s2v.evaluation import evaluate_frames, load_readers

DEMO = Path(__file__).parent.parent / "src/wan_s2v/assets/demo"
VOICES = ("voice_en.flac", "voice_es.flac", "voice_zh.flac", "voice_recorded.wav")
RATE, FPS = 16_000, 16
PAUSE_S, SETTLED_S = 1.2, 0.35  # the mouth may still close at the start of a pause and open at its end
CUT_S, LENGTH_S = 1.6, 4.0
CHORD_LEVEL = 0.06  # of each of four tones, about as loud as the voices


def with_pause(voice: np.ndarray) -> np.ndarray:
    """The voice of 4 s with a silent pause in it."""
    cut, pause = round(CUT_S * RATE), np.zeros(round(PAUSE_S * RATE), np.float32)
    return np.concatenate([voice[:cut], pause, voice[cut:]])[: round(LENGTH_S * RATE)]


def chords() -> np.ndarray:
    """The pause, filled with a changing chord."""
    t = np.arange(round(PAUSE_S * RATE)) / RATE
    beats = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 4 * t))
    return sum(np.sin(2 * np.pi * f * t) for f in (220, 277, 330, 440)) * CHORD_LEVEL * beats


def measure(pipeline: Any, readers: Any, portrait: Path, heard: np.ndarray, voice: np.ndarray, silence: str) -> dict:
    """Sync with the voice, and how open the mouth is on average where the pause has settled."""
    result = pipeline((heard, RATE), portrait, fps=FPS, seed=7, silence=silence)
    height, width = result.frames.shape[1:3]
    reference = np.asarray(Image.open(portrait).convert("RGB").resize((width, height)))
    found = evaluate_frames(result.frames, voice, reference=reference, readers=readers)
    pause = slice(round((CUT_S + SETTLED_S) * FPS), round((CUT_S + PAUSE_S - SETTLED_S) * FPS))
    opening = statistics.mean(found.opening[pause])
    return {"offset": found.sync_offset_frames, "confidence": found.sync_confidence, "opening": opening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=int, default=2, help="how many of the six demo portraits")
    portraits = [DEMO / f"portrait_{number + 1}.png" for number in range(parser.parse_args().portraits)]
    pipeline, readers = WanS2VPipeline.from_pretrained("tiny"), load_readers()
    pipeline.set_progress_bar_config(disable=True)
    print("voice  portrait  sound  silence  offset  confidence  opening in the pause", flush=True)
    for name in VOICES:
        voice = with_pause(load_waveform(DEMO / name).samples)
        music = voice.copy()
        music[round(CUT_S * RATE) : round((CUT_S + PAUSE_S) * RATE)] += chords()
        for portrait in portraits:
            for sound, heard in (("voice", voice), ("music", music.astype(np.float32))):
                for silence in ("keep", "clean"):
                    row = measure(pipeline, readers, portrait, heard, voice, silence)
                    print(
                        f"{name}  {portrait.stem}  {sound}  {silence}  {row['offset']:+d}  {row['confidence']:.3f}  "
                        f"{row['opening']:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
