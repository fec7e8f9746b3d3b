"""What a picture, a sound and a pose video may be before a plan is made of them, found by decoding, never by name."""

from __future__ import annotations

from wan_s2v.audio import load_waveform
from wan_s2v.clips import as_fps
from wan_s2v.image import read_image_size
from wan_s2v.plan import GenerationOptions, GenerationPlan
from wan_s2v.server.limits import Limits
from wan_s2v.server.problems import Problem
from wan_s2v.server.storage import JobFiles
from wan_s2v.sound_span import as_seconds
from wan_s2v.video import opened


def check_lengths(options: GenerationOptions, limits: Limits) -> None:
    """Raises: Problem for a length or size that is asked for and too large; nothing is opened."""
    if options.num_frames is not None:
        fps = as_fps(options.fps or 24)
        _check_duration(
            f"num_frames={options.num_frames} at {float(fps):g} fps", float(options.num_frames / fps), limits
        )
    if options.duration_s is not None:
        _check_duration(f"duration_s={options.duration_s}", float(as_seconds("duration_s", options.duration_s)), limits)
    if options.height is not None and options.width is not None:
        _check_frame(options.height, options.width, limits)


def check_inputs(files: JobFiles, options: GenerationOptions, limits: Limits) -> None:
    """Raises: Problem for a file beyond the limits; MediaError for one that cannot be read."""
    height, width = read_image_size(files.image)
    if height * width > limits.image_pixels:
        millions = limits.image_pixels / 1e6
        raise Problem(
            "too_large",
            f"image has {width}x{height} pixels. At most {millions:g} million are accepted; make it smaller.",
        )
    is_cut = options.duration_s is not None or (options.num_frames is not None and options.timing == "aligned")
    for path in (files.audio, files.vocals):
        if path.exists() and not is_cut:  # a little more than allowed is enough to know
            _check_duration(path.name, load_waveform(path, duration_s=limits.duration_s + 1).duration_s, limits)
    if files.pose_video.exists():
        _check_pose(files, limits)


def check_plan(plan: GenerationPlan, limits: Limits) -> None:
    """Raises: Problem for a video beyond the limits."""
    _check_frame(plan.framing.height, plan.framing.width, limits)
    _check_duration("The video", float(plan.clips.duration), limits)


def _check_pose(files: JobFiles, limits: Limits) -> None:
    """Every frame is decoded once, so that the worker meets nothing new."""
    with opened(files.pose_video) as container:
        for frame in container.decode(video=0):
            if frame.width * frame.height > limits.frame_pixels:
                size = f"{frame.width}x{frame.height}"
                raise Problem("too_large", f"pose_video has frames of {size}. {_frame_limit(limits)}; make it smaller.")
            _check_duration("pose_video", frame.time or 0, limits)


def _check_frame(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.frame_pixels:
        raise Problem(
            "invalid", f"A video of {width}x{height} is too large. {_frame_limit(limits)}; pass a smaller area."
        )


def _frame_limit(limits: Limits) -> str:
    return f"At most {limits.frame_pixels} pixels per frame are accepted"


def _check_duration(what: str, seconds: float, limits: Limits) -> None:
    if seconds > limits.duration_s:
        raise Problem(
            "too_large",
            f"{what} lasts {min(float(seconds), 1e9):.1f} s or more. At most {limits.duration_s:g} s are accepted.",
        )
