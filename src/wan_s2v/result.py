"""What a run gives: clips as they finish, the whole video, and its way into a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from wan_s2v.clips import Clip
from wan_s2v.errors import UsageError
from wan_s2v.plan import GenerationPlan
from wan_s2v.video import VideoWriter

OutputType = Literal["uint8", "pt", "latent"]


@dataclass(frozen=True)
class S2VClip:
    """A finished piece of the video.

    Args:
        clip: its place in the plan.
        frames: output frames, in time order and without gaps over the clips: (T, H, W, 3) uint8, or (T, 3, H, W)
            float32 in [-1, 1] with output_type="pt", or the clip's latents (C, F, h, w) with "latent".
        seconds: time spent per stage.
        num_predictions: steps whose prediction was computed; the others were extrapolated.
    """

    clip: Clip
    frames: np.ndarray | Tensor
    seconds: dict[str, float]
    num_predictions: int


@dataclass(frozen=True)
class S2VOutput:
    """A finished video.

    Args:
        frames: (T, H, W, 3) uint8; (T, 3, H, W) float32 with output_type="pt"; (C, F, h, w) with "latent".
        audio: (n,) float32, mono 16 kHz, as long as the video.
        metadata: everything needed to make it again, and how long each stage took.
    """

    frames: np.ndarray | Tensor
    fps: float
    audio: np.ndarray
    sample_rate: int
    metadata: dict[str, Any]
    plan: GenerationPlan = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write an mp4 with the user's own sound; it is opened again and checked.

        Raises: OutputError if the file cannot be written or is not as planned; UsageError for latents.
        """
        if not isinstance(self.frames, np.ndarray):
            raise UsageError('These frames are tensors. Generate with output_type="uint8" to save a video.')
        with open_writer(path, self.plan, self.metadata) as writer:
            writer.write(self.frames[: writable_frames(self.plan)])
        return Path(path)


def writable_frames(plan: GenerationPlan) -> int:
    """Frames that go into the file: all, but official timing ends it with the shorter of video and sound."""
    if plan.clips.timing == "aligned":
        return plan.clips.num_frames
    return max(1, min(plan.clips.num_frames, int(plan.waveform.duration_s * plan.clips.fps)))


def open_writer(path: str | Path, plan: GenerationPlan, metadata: dict[str, Any]) -> VideoWriter:
    """A writer for the plan's size, rate and sound, which labels and marks the file as AI-generated."""
    tags = {"comment": f"AI-generated video (wan_s2v {metadata['version']}, seed {plan.seed})"}
    return VideoWriter(
        path,
        height=plan.framing.height,
        width=plan.framing.width,
        fps=plan.clips.fps,
        audio=plan.audio_source,
        span=plan.span,
        metadata=tags,
        marking=plan.marking,
    )
