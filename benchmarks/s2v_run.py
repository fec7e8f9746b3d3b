"""Stage `whole` of `s2v.py`: a video of one or two clips, from picture and sound to mp4, by the pipeline's own loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import torch
from PIL import Image
from s2v_meter import Meter, Record, largest, spread
from s2v_model import SPEC, Size

import wan_s2v.pipeline
import wan_s2v.plan
from wan_s2v import WanS2VPipeline
from wan_s2v.audio import MODEL_SAMPLE_RATE
from wan_s2v.clips import WARM_UP_FRAMES, as_fps, frames_covered
from wan_s2v.plan import DEFAULT_FPS, GenerationPlan
from wan_s2v.result import S2VClip, open_writer

_PROMPT = "A person speaks to the camera in a quiet room, soft light from a window, medium shot."


FAST_STEPS = 16  # of 40 that preset="fast" computes; see "Extrapolated steps" in docs/performance.md


@dataclass(frozen=True)
class Video:
    """What is made: so many clips of so many frames and steps each."""

    num_clips: int
    frames_per_clip: int
    steps: int
    preset: str = "exact"


def measure_whole(pipeline: WanS2VPipeline, size: Size, video: Video, meter: Meter) -> Record:
    """The run stage by stage, and what it takes with the model's own number of steps.

    A run at the smallest size comes first, so that libraries are loaded. The first step of a clip, which also prepares
    the clip's constants, does not count as a step. All steps are computed, also with preset="fast": which of them it
    would extrapolate depends on the weights, so its whole time is given for `FAST_STEPS` computed ones.
    """
    with patch.object(wan_s2v.plan, "FAST_CHANGE", 0.0):
        return _measure(pipeline, size, video, meter)


def _measure(pipeline: WanS2VPipeline, size: Size, video: Video, meter: Meter) -> Record:
    steps = video.steps
    smallest = Size(SPEC.min_side, SPEC.min_side)
    list(pipeline.run(_plan(pipeline, smallest, replace(video, steps=1))))
    plan = _plan(pipeline, size, video)
    meter.release()
    started = time.perf_counter()
    clips, step_ends, peaks = _timed_run(pipeline, plan, meter)
    run_s = time.perf_counter() - started
    frames = np.concatenate([np.asarray(clip.frames) for clip in clips])
    write_s = _write_seconds(pipeline, plan, frames)
    per_clip = [spread(np.diff(ends).tolist()) for ends in np.reshape(step_ends, (len(clips), steps))]
    total_s = run_s + (write_s or 0)
    full_steps = FAST_STEPS if video.preset == "fast" else pipeline.spec.num_inference_steps
    return {
        "steps": steps,
        "preset": video.preset,
        "frames": len(frames),
        "passes_per_step": plan.sampling.guidance.passes,
        "clips": [{"stages_s": clip.seconds, "step": step} for clip, step in zip(clips, per_clip, strict=True)],
        "write_s": write_s,
        "total_s": total_s,
        "full_steps": full_steps,
        "full_total_s": total_s + (full_steps - steps) * sum(step["median_s"] for step in per_clip),
        "peaks": peaks,
        "attention": pipeline.describe(plan)["attention"],
        "memory": pipeline.describe(plan).get("memory"),
    }


def measure_capped(
    pipeline: WanS2VPipeline, size: Size, video: Video, caps: Sequence[float], meter: Meter
) -> dict[float, Record]:
    """The same run where PyTorch may hold only so many GB of the GPU; weights that do not fit wait in main memory."""
    pipeline.to("cpu")
    pipeline.compute_on(meter.device)
    total = torch.cuda.get_device_properties(meter.device).total_memory
    records = {}
    for cap in caps:
        meter.release()
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 1e9 / total), meter.device)
        records[cap] = measure_whole(pipeline, size, video, meter)
    torch.cuda.set_per_process_memory_fraction(1.0, meter.device)
    pipeline.to(meter.device)
    return records


def _timed_run(
    pipeline: WanS2VPipeline, plan: GenerationPlan, meter: Meter
) -> tuple[list[S2VClip], list[float], dict[str, Record]]:
    """The clips, the moment at which each step was done, and the peak of memory of each stage."""
    clock, step_ends = _StageClock(meter), list[float]()

    def on_step(*_: object) -> None:
        meter.wait()
        step_ends.append(time.perf_counter())

    with patch.object(wan_s2v.pipeline, "Clock", lambda: clock):
        clips = list(pipeline.run(plan, callback_on_step_end=on_step))
    return clips, step_ends, clock.peaks


class _StageClock(wan_s2v.pipeline.Clock):
    """The pipeline's own clock, made to wait for the device and to note the memory that every stage needs."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.peaks: dict[str, Record] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.meter.forget_peak()
        with super().__call__(stage):
            yield
            self.meter.wait()
        self.peaks[stage] = largest([self.meter.peak(), *filter(None, [self.peaks.get(stage)])])


def _plan(pipeline: WanS2VPipeline, size: Size, video: Video) -> GenerationPlan:
    """The longest video that so many clips give, of a noisy picture and a hum."""
    fps = as_fps(DEFAULT_FPS)
    num_frames = frames_covered(video.num_clips * video.frames_per_clip - WARM_UP_FRAMES, fps, SPEC.model_fps)
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8))
    moments = np.arange(round(num_frames / fps * MODEL_SAMPLE_RATE)) / MODEL_SAMPLE_RATE
    hum = 0.3 * np.sin(2 * np.pi * 140 * moments) * np.sin(2 * np.pi * 2 * moments)
    return pipeline.plan(
        (hum.astype(np.float32), MODEL_SAMPLE_RATE),
        picture,
        prompt=_PROMPT,
        seed=0,
        height=size.height,
        width=size.width,
        fps=fps,
        num_frames=num_frames,
        frames_per_clip=video.frames_per_clip,
        num_inference_steps=video.steps,
        preset=video.preset,
    )


def can_write_video() -> bool:
    """Whether PyAV is there with its encoders; a stand-in may have only its names."""
    codecs = getattr(av, "codecs_available", None)
    return isinstance(codecs, set) and "libx264" in codecs


def _write_seconds(pipeline: WanS2VPipeline, plan: GenerationPlan, frames: np.ndarray) -> float | None:
    """Time to write and check the mp4; None where PyAV cannot."""
    if not can_write_video():
        return None
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with open_writer(Path(folder) / "video.mp4", plan, pipeline.describe(plan)) as writer:
            writer.write(frames)
        return time.perf_counter() - started
