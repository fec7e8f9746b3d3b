"""Time as integers: how many clips, which sound each one hears, which of its frames reach the video.

The model makes frames at `model_fps` (16). "Model frame k" shows time k / model_fps of the sound. Nothing in here
touches files, tensors or floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil
from typing import Literal

from wan_s2v.errors import UsageError

Timing = Literal["aligned", "reference"]

FRAMES_PER_LATENT = 4  # temporal stride of the VAE; a clip's length is a multiple of it
MAX_FRAMES_PER_CLIP = 80  # what the published model was trained for
WARM_UP_FRAMES = 3  # first decoded frames of a clip that has no motion history; never shown
MAX_FPS = 240


@dataclass(frozen=True)
class Clip:
    """One run of the model.

    Args:
        index: position in the video; clip r draws its noise from seed + r.
        start: model frame that the clip's first frame shows (and whose sound conditions it); may be negative.
        num_frames: frames the model makes, a multiple of 4.
        keep_start, keep_stop: span of those frames that reaches the video.
        has_motion: whether the frames before the clip are shown to the model.
    """

    index: int
    start: int
    num_frames: int
    keep_start: int
    keep_stop: int
    has_motion: bool

    @property
    def num_latent_frames(self) -> int:
        return self.num_frames // FRAMES_PER_LATENT

    @property
    def num_kept(self) -> int:
        return self.keep_stop - self.keep_start


@dataclass(frozen=True)
class ClipPlan:
    """Clips that together make a video of `num_frames` at `fps`.

    `model_frames` is what the clips keep, at `model_fps`; frames of the video that fall between two model frames are
    interpolated, so the duration never changes. In timing "aligned" kept frame k shows model frame k; in timing
    "reference" it shows model frame k + 3 (unless the video starts from the reference image), as officially.
    """

    timing: Timing
    fps: Fraction
    num_frames: int
    model_fps: int
    model_frames: int
    clips: tuple[Clip, ...]

    @property
    def duration(self) -> Fraction:
        """Seconds of the video."""
        return self.num_frames / self.fps

    @property
    def num_clips(self) -> int:
        return len(self.clips)

    @property
    def generated_frames(self) -> int:
        """Frames that the model makes, kept or not."""
        return sum(clip.num_frames for clip in self.clips)

    @property
    def shown_times(self) -> list[tuple[Fraction, Fraction]]:
        """Seconds of the video at which each clip begins and ends to be shown."""
        edges = [0, *accumulate(clip.num_kept for clip in self.clips)]
        return list(pairwise(min(Fraction(edge, self.model_fps), self.duration) for edge in edges))

    @property
    def sound_span(self) -> tuple[int, int]:
        """First and one-past-last model frame whose sound conditions any clip."""
        return self.clips[0].start, self.clips[-1].start + self.clips[-1].num_frames


def as_fps(value: int | float | str | Fraction) -> Fraction:
    """A frame rate as an exact fraction; 29.97, 23.976 and 59.94 mean their n/1001 rates.

    Raises: UsageError unless 1 ≤ fps ≤ 240.
    """
    try:
        exact = Fraction(value)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise UsageError(f"fps={value} is not a number. Give frames per second, such as 24, 25 or 29.97.") from None
    broadcast = Fraction(round(exact * 1001 / 1000) * 1000, 1001)
    if exact.denominator > 1 and abs(exact - broadcast) < Fraction(1, 200):
        exact = broadcast
    if not 1 <= exact <= MAX_FPS:
        raise UsageError(f"fps={value} is outside 1…{MAX_FPS}. Usual values are 16 (the model's own), 24, 25 and 30.")
    return exact.limit_denominator(1001)


def model_frames_needed(num_frames: int, fps: Fraction, model_fps: int) -> int:
    """Model frames that `num_frames` at `fps` read, up to the successor of the last in-between frame."""
    return ceil((num_frames - 1) * model_fps / fps) + 1


def frames_covered(model_frames: int, fps: Fraction, model_fps: int) -> int:
    """Longest video at `fps` that `model_frames` suffice for; inverse of `model_frames_needed`."""
    return int((model_frames - 1) * fps / model_fps) + 1


def plan_aligned(
    duration: Fraction,
    *,
    fps: Fraction,
    model_fps: int,
    num_frames: int | None = None,
    frames_per_clip: int = MAX_FRAMES_PER_CLIP,
    num_clips: int | None = None,
    start_from_reference: bool = False,
) -> ClipPlan:
    """Cover the sound exactly: the fewest clips, of nearly equal length, with at most 3 frames of excess.

    Args:
        duration: seconds of sound.
        num_frames: length of the video where it shall differ from round(duration · fps).
        frames_per_clip: longest clip.
        num_clips: make at most this many clips and shorten the video to fit.
        start_from_reference: the video begins with the reference image itself, so that no warm-up frames are needed.
    """
    check_clip_options(frames_per_clip, num_clips, num_frames)
    num_frames = max(1, round(duration * fps)) if num_frames is None else num_frames
    skip = 0 if start_from_reference else WARM_UP_FRAMES
    if num_clips is not None:
        num_frames = min(num_frames, frames_covered(num_clips * frames_per_clip - skip, fps, model_fps))
    model_frames = model_frames_needed(num_frames, fps, model_fps)
    units = -(-(model_frames + skip) // FRAMES_PER_LATENT)
    count = -(-units * FRAMES_PER_LATENT // frames_per_clip)
    clips = []
    start = -skip
    for index in range(count):
        length = FRAMES_PER_LATENT * (units // count + (index < units % count))
        keep_stop = min(length, model_frames - start)
        keep_start = 0 if index else skip
        clips.append(Clip(index, start, length, keep_start, keep_stop, start_from_reference or index > 0))
        start += length
    return ClipPlan("aligned", fps, num_frames, model_fps, model_frames, tuple(clips))


def plan_reference(
    audio_clips: int,
    *,
    fps: Fraction,
    model_fps: int,
    num_frames: int | None = None,
    frames_per_clip: int = MAX_FRAMES_PER_CLIP,
    num_clips: int | None = None,
    start_from_reference: bool = False,
) -> ClipPlan:
    """Clips as the official code makes them: all of one length, each conditioned on its own span from model frame 0.

    Args:
        audio_clips: clips that the sound asks for (`audio.reference_num_clips`).
        num_frames: cut the video to this length; it cannot become longer than the clips.
        num_clips: make at most this many clips.
    """
    check_clip_options(frames_per_clip, num_clips, num_frames)
    count = audio_clips if num_clips is None else min(num_clips, audio_clips)
    skip = 0 if start_from_reference else WARM_UP_FRAMES
    length = frames_per_clip
    clips = tuple(
        Clip(r, r * length, length, 0 if r else skip, length, start_from_reference or r > 0) for r in range(count)
    )
    model_frames = count * frames_per_clip - skip
    longest = frames_covered(model_frames, fps, model_fps)
    num_frames = longest if num_frames is None else min(num_frames, longest)
    return ClipPlan("reference", fps, num_frames, model_fps, model_frames, clips)


def check_clip_options(frames_per_clip: int, num_clips: int | None, num_frames: int | None) -> None:
    """Raises: UsageError naming the first option that is not accepted."""
    if frames_per_clip < FRAMES_PER_LATENT or frames_per_clip % FRAMES_PER_LATENT:
        below = max(FRAMES_PER_LATENT, frames_per_clip // FRAMES_PER_LATENT * FRAMES_PER_LATENT)
        nearest = dict.fromkeys((below, min(MAX_FRAMES_PER_CLIP, below + FRAMES_PER_LATENT)))
        raise UsageError(
            f"frames_per_clip={frames_per_clip} is not a positive multiple of 4. "
            f"Nearest allowed: {', '.join(map(str, nearest))}."
        )
    if frames_per_clip > MAX_FRAMES_PER_CLIP:
        raise UsageError(
            f"frames_per_clip={frames_per_clip} is more than the model can make at once. "
            f"Give at most {MAX_FRAMES_PER_CLIP}; longer videos are made of several clips."
        )
    for name, value in (("num_clips", num_clips), ("num_frames", num_frames)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} is less than 1. Give 1 or more, or leave it out to follow the sound.")
