"""What the embedded model is measured on: people, sentences and voices that it never met, made, generated and judged.

A clip is decided by its task alone, so that parts of the work can be done anywhere and in any order. Beside every
generated clip stands the same one as the renderer draws it: no model can be expected to do better than that.
"""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_s2v import WanS2VPipeline
from wan_s2v.audio import MODEL_SAMPLE_RATE, load_waveform
from wan_s2v.evaluation import Evaluation, Readers, evaluate_frames, load_readers, measures
from wan_s2v.result import S2VOutput
from wan_s2v.training.corpus import CURVE_HZ, SpeechClip, sample_utterance
from wan_s2v.training.examples import render_clips
from wan_s2v.training.identities import Identities, sample_identities
from wan_s2v.training.motion import FPS, Controls, reference_motion, sample_controls, sample_motion
from wan_s2v.training.mouth_clips import visible_shapes
from wan_s2v.training.poses import NUM_MOUTH_CHANNELS
from wan_s2v.training.prompts import describe, identity_facts
from wan_s2v.training.visemes import to_video_rate
from wan_s2v.video import read_video_info

DEMO = Path(__file__).parent.parent / "src" / "wan_s2v" / "assets" / "demo"
SEED = 20_260_000  # far from all that training draws from
LANGUAGES = {"en": "English", "cmn": "Mandarin", "ja": "Japanese", "de": "German", "es": "Spanish", "fr": "French"}
LONG_CLIPS = 10  # of the model's longest, in a long run
STILL = Controls("neutral", "still", "still")
_LONG_SEED = SEED + 50_000
_FILES = 4  # held-out clips that are also written to a file

Kind = Literal["held-out", "reference", "recording", "long"]
_Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """One video to be made.

    Args:
        kind: "held-out" speech; the same with timing="reference"; a "recording" of a real voice in place of that
            speech; or a "long" video of a camera and a person that keep still.
        index: of the clip: person, language, directions, noise.
        recording: name of the file.
    """

    kind: Kind
    index: int
    recording: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind} {self.index} {self.recording}".strip()

    @property
    def language(self) -> str:
        return list(LANGUAGES)[self.index % len(LANGUAGES)]

    @property
    def is_still(self) -> bool:
        """Every fourth clip, such that 24 clips have one in each language."""
        return self.kind == "long" or (self.index // len(LANGUAGES) + self.index) % 4 == 0


@dataclass(frozen=True)
class Settings:
    """Circumstances that all clips of one measurement share; `steps` None are the model's own."""

    seconds: float = 5.0
    size: int = 256
    steps: int | None = None


@dataclass(frozen=True)
class Sample:
    """What goes into a video, and what should come out.

    Args:
        waveform: (n,) float32 at 16 kHz. voice: who speaks. reference: (H, W, 3) of the portrait.
        truth: (T, 6) visible mouth shapes; None of a recording, whose phonemes are not known.
        film: (T, H, W, 3) as rendered, where that is judged too.
    """

    task: Task
    controls: Controls
    prompt: str
    voice: str
    waveform: NDArray[np.float32]
    reference: _Pixels
    truth: NDArray[np.float32] | None = None
    film: _Pixels | None = None


@dataclass(frozen=True)
class Made:
    """A generated video (T, H, W, 3), the first frames of its clips, and how long it took."""

    sample: Sample
    frames: _Pixels
    clip_starts: tuple[int, ...]
    seconds: float
    length_error_frames: float | None


def make_sample(task: Task, settings: Settings, device: torch.device, longest_clip: int) -> Sample:
    """Synthesise, draw and describe; `longest_clip` is the model's, in frames, of which long runs are made."""
    seed = (_LONG_SEED if task.kind == "long" else SEED) + task.index
    generator = torch.Generator().manual_seed(seed)
    person = sample_identities(1, generator)
    controls = STILL if task.is_still else sample_controls(1, generator)[0]
    language: Literal["en", "zh"] = "zh" if torch.rand((), generator=generator) < 0.5 else "en"
    prompt = describe(controls, identity_facts(person), language, generator)
    reference = _draw(person, reference_motion(1)[:, None], settings.size, device)[0]
    if task.kind == "recording":
        sound = read_recording(DEMO / task.recording, settings.seconds, task.index)
        return Sample(task, controls, prompt, task.recording, sound, reference)
    seconds = LONG_CLIPS * longest_clip / FPS if task.kind == "long" else settings.seconds
    speech = sample_utterance(np.random.default_rng((seed, 0)), "held-out", seconds, task.language)
    motion = _motion(speech, int(seconds * FPS), controls, generator)
    truth = visible_shapes(motion[0, :, :NUM_MOUTH_CHANNELS]).numpy()
    film = None if task.kind == "reference" else _draw(person, motion, settings.size, device)
    return Sample(task, controls, prompt, speech.voice, speech.waveform, reference, truth, film)


def _motion(speech: SpeechClip, num_frames: int, controls: Controls, generator: torch.Generator) -> Tensor:
    """(1, T, channels) at k / 16 s."""
    steps = np.round(np.arange(num_frames) * CURVE_HZ / FPS).astype(int)
    mouth = torch.from_numpy(to_video_rate(speech.mouth, FPS, num_frames))
    return sample_motion(mouth[None], torch.from_numpy(speech.energy[steps])[None], [controls], generator)


@torch.no_grad()
def _draw(person: Identities, motion: Tensor, size: int, device: torch.device) -> _Pixels:
    """(T, size, size, 3)."""
    frames = render_clips(person.to(device), motion.to(device), size)[0]
    return ((frames.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def read_recording(path: Path, seconds: float, index: int) -> NDArray[np.float32]:
    """A stretch of a 16-bit WAVE file at 16 kHz, another one for each index; a short recording is repeated.

    Read without PyAV, so that machines without FFmpeg's libraries can measure too.
    """
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        waveform = load_waveform((samples, file.getframerate())).samples
    count = round(seconds * MODEL_SAMPLE_RATE)
    return waveform.take(np.arange(index * count, (index + 1) * count), mode="wrap")


def generate(pipeline: WanS2VPipeline, sample: Sample, settings: Settings) -> Made:
    """The video, at the 16 frames a second that are judged."""
    task = sample.task
    result = pipeline(
        (sample.waveform, MODEL_SAMPLE_RATE),
        sample.reference,
        prompt=sample.prompt,
        seed=task.index,
        fps=FPS,
        height=settings.size,
        width=settings.size,
        num_inference_steps=settings.steps,
        num_clips=LONG_CLIPS if task.kind == "long" else None,
        timing="reference" if task.kind == "reference" else "aligned",
    )
    frames = np.asarray(result.frames)[: int(len(sample.waveform) / MODEL_SAMPLE_RATE * FPS)]
    kept = np.cumsum([0, *(clip.num_kept for clip in result.plan.clips.clips[:-1])])
    starts = tuple(int(start) for start in kept if start < len(frames))
    error = _length_error(result) if task.kind == "held-out" and task.index < _FILES and _can_write_files() else None
    return Made(sample, frames, starts, result.metadata["seconds"]["total"], error)


def _can_write_files() -> bool:
    return hasattr(av, "__version__")  # a placeholder of PyAV, on a machine without FFmpeg's libraries, has none


def _length_error(result: S2VOutput) -> float:
    """Frames by which picture and sound of the written file differ in length."""
    with tempfile.TemporaryDirectory() as folder:
        info = read_video_info(result.save(Path(folder) / "clip.mp4"))
    assert info.audio_duration_s is not None
    return abs(info.duration_s - info.audio_duration_s) * float(info.fps)


@cache
def readers() -> Readers:
    """Loaded once a process; on the CPU, of which there are many beside a GPU that is busy generating."""
    return load_readers()


def judge(made: Made) -> dict[str, Any]:
    """Everything that is measured on one video, and on the rendered one beside it, as plain values."""
    sample, truth = made.sample, made.sample.truth
    told = None
    if sample.film is not None:
        told = _evaluate(sample.film, sample, made.clip_starts)
    known = None if truth is None else truth[: len(made.frames)]
    return {
        "key": sample.task.key,
        **asdict(sample.task),
        "language": sample.task.language,
        "voice": sample.voice,
        "still": sample.task.is_still,
        "prompt": sample.prompt,
        **asdict(sample.controls),
        "clips": len(made.clip_starts),
        "seconds": made.seconds,
        "length_error_frames": made.length_error_frames,
        "closures": 0 if known is None else len(measures.closures(known)),
        "silent_frames": 0 if known is None else int(measures.rest_frames(known).sum()),
        "found": _plain(_evaluate(made.frames, sample, made.clip_starts)),
        "truth": None if told is None else _plain(told),
    }


def _evaluate(frames: _Pixels, sample: Sample, clip_starts: Sequence[int]) -> Evaluation:
    return evaluate_frames(
        frames,
        sample.waveform,
        reference=sample.reference,
        clip_starts=clip_starts,
        truth=sample.truth,
        readers=readers(),
    )


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in evaluation.to_json().items() if name not in ("opening", "notes")}
