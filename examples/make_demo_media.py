"""Make the demo's drawn portraits and synthetic voices again: python examples/make_demo_media.py [FOLDER].

Needs the `train` extra, for espeak-ng. The recordings and the photograph beside them are not made here; the folder's
README says where they come from.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wan_s2v.training.identities import sample_identities
from wan_s2v.training.motion import reference_motion
from wan_s2v.training.portraits import render
from wan_s2v.training.speech import SAMPLE_RATE, Synthesizer, Voice

SIZE = 512
GROUP = 40  # people sampled from one seed
PEOPLE = ((7002, 16), (7001, 19), (7001, 34), (7001, 28), (7002, 23), (7002, 12))  # seed and place within the group
SECONDS = 5.0
PEAK = 0.5
# Speakers that no training has heard.
VOICES = {
    "en": (Voice("en", "en-us", "f4"), "Hello and welcome. My picture was drawn a moment ago, and now it speaks."),
    "zh": (Voice("cmn", "cmn", "m7"), "大家好。我是一张图片，现在会说话了。"),
    "es": (Voice("es", "es", "adam"), "Hola a todos, bienvenidos. Mi retrato es un dibujo y ahora os habla."),
}


def draw_portrait(seed: int, place: int) -> Image.Image:
    """One person at rest, RGB, SIZE by SIZE."""
    person = sample_identities(GROUP, torch.Generator().manual_seed(seed))[place]
    frame = render(person, reference_motion(1), SIZE, SIZE)[0]
    return Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())


def speak(text: str, voice: Voice) -> NDArray[np.int16]:
    """SECONDS of speech at 16 kHz: the text, then silence."""
    waveform = Synthesizer().synthesize(text, voice).waveform
    length = round(SECONDS * SAMPLE_RATE)
    if len(waveform) > length:
        raise ValueError(f"{text!r} takes {len(waveform) / SAMPLE_RATE:.2f} s. Shorten it to {SECONDS:g} s.")
    padded = np.pad(waveform, (0, length - len(waveform)))
    return (padded * (PEAK / np.abs(padded).max()) * 32767).round().astype(np.int16)


def write_flac(path: Path, samples: NDArray[np.int16]) -> None:
    """Mono, 16 bits, 16 kHz. Not WAVE: the benchmark takes every .wav among the demo media for a recording."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for part in (frame, None):
            container.mux(stream.encode(part))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else str(files("wan_s2v") / "assets" / "demo"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, (seed, place) in enumerate(PEOPLE, 1):
        draw_portrait(seed, place).save(folder / f"portrait_{number}.png", optimize=True)
    for name, (voice, text) in VOICES.items():
        write_flac(folder / f"voice_{name}.flac", speak(text, voice))
    print(folder)
