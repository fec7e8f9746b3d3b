"""One planned video, made by a loaded pipeline: clips are kept as they finish, encoded beside the next one's steps.

The commands for one video and for many, and the server's workers, make videos here and nowhere else. Nothing prints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from wan_s2v.commands.interrupts import stopping
from wan_s2v.commands.progress import Reporter
from wan_s2v.commands.request import Preview
from wan_s2v.commands.resume import begin_run, request_record
from wan_s2v.image import apply_framing
from wan_s2v.lora_loading import LoRALoading
from wan_s2v.ops.attention import chosen_backends
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.preview import GrowingVideo, StepPicture
from wan_s2v.result import S2VClip, open_writer, writable_frames
from wan_s2v.sidecar import SCHEMA_VERSION, write_sidecar
from wan_s2v.sound_span import SoundSpan
from wan_s2v.video import VideoWriter
from wan_s2v.weights.lora import LoRAFile


def make_video(pipeline: WanS2VPipeline, wanted: Preview, reporter: Reporter) -> dict[str, Any]:
    """Make and write one video and its record, clip by clip, going on from what an earlier run has kept.

    On failure no file is left but the finished clips.

    Returns: the record of the run: versions, plan, warnings, clips, and seconds per stage.
    Raises: RunStoppedError after Ctrl-C or SIGTERM.
    """
    request, started = wanted.request, time.perf_counter()
    use_loras(pipeline, request.loras)
    partial_run, identity = wanted.partial_run, begin_run(wanted)
    try:
        record = _make(pipeline, wanted, reporter, started) | {"identity": identity}
    except BaseException:
        partial_run.remove_if_empty()
        raise
    write_sidecar(request.output, record)
    if request.keep_clips or request.clip_span is not None:
        partial_run.change_run(finished=True)
    else:
        partial_run.remove()
    return record


def _make(pipeline: WanS2VPipeline, wanted: Preview, reporter: Reporter, started: float) -> dict[str, Any]:
    """The video; returns its record."""
    plan, needed, partial_run = wanted.plan, wanted.estimate, wanted.partial_run
    reporter.start(plan.clips.num_clips, plan.sampling.num_inference_steps, needed.vae_seconds / needed.seconds)
    clips: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    kept = set(partial_run.finished_clips())
    with stopping(partial_run.stop_soon, reporter.note), _Files(wanted, pipeline) as files:
        on_step = files.picturing(reporter.step)
        for clip in pipeline.run(plan, callback_on_step_end=on_step, partial_run=partial_run):
            files.write(clip)
            for stage, spent in clip.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
            clips.append(_clip_record(wanted, clip, clip.clip.index in kept))
            if not clips[1:]:  # once they were chosen
                partial_run.change_run(attention=chosen_backends())
            reporter.clip_written()
            if files.are_full:
                break
    seconds |= {"write": files.seconds, "total": time.perf_counter() - started}
    record = pipeline.describe(plan)
    record["warnings"] = list(dict.fromkeys([*wanted.warnings, *record["warnings"]]))
    record["seconds"] = {stage: round(spent, 3) for stage, spent in seconds.items()}
    record |= {
        "schema_version": SCHEMA_VERSION,
        "request": request_record(wanted),
        "memory_estimate_gib": round(needed.peak_bytes / 2**30, 3),
        "clips": clips,
    }
    return record


def _clip_record(wanted: Preview, clip: S2VClip, was_kept: bool) -> dict[str, Any]:
    index, seconds = clip.clip.index, clip.seconds
    if was_kept and (kept := wanted.partial_run.clip(index)) is not None:
        seconds = {**kept.seconds, **seconds}
    return {
        "index": index,
        "seed": wanted.plan.clip_seeds[index],
        "prompt": wanted.plan.clip_prompts[index],
        "num_frames": len(clip.frames),
        "num_predictions": clip.num_predictions,
        "from_earlier_run": was_kept,
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
    }


def use_loras(pipeline: LoRALoading, loras: Sequence[LoRAFile]) -> None:
    """Have exactly these on the experts that they are for; those read for a video before stay in main memory.

    Raises: CheckpointError for what a header does not show, such as NaN.
    """
    pipeline.set_adapters([])
    experts = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name) is not None]
    for expert in experts:
        wanted = [lora for lora in loras if lora.is_for(expert, experts)]
        loaded = pipeline.adapters[expert].loras if expert in pipeline.adapters else {}
        for lora in wanted:
            if str(lora.path) not in loaded:
                second = expert == "transformer_2"
                pipeline.load_lora_weights(lora.path, str(lora.path), weight=0, load_into_transformer_2=second)
        if expert in pipeline.adapters:
            pipeline.adapters[expert].set_weights({str(lora.path): lora.weight for lora in wanted})


class _Files:
    """The video and its preview, encoded in a thread while the next clip is made."""

    def __init__(self, wanted: Preview, pipeline: WanS2VPipeline) -> None:
        self._wanted, self._metadata = wanted, pipeline.describe(wanted.plan)
        self._num_passed = 0  # frames of the whole video so far
        self._left = writable_frames(wanted.plan)
        self._writer: VideoWriter | None = None
        self._preview: GrowingVideo | None = None
        self._thread = ThreadPoolExecutor(1, "encode")
        self._pending: Future[None] | None = None
        self._open = ExitStack()
        self.seconds = 0.0

    @property
    def are_full(self) -> bool:
        """Whether nothing more is to be written."""
        return self._left == 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        except BaseException as failure:
            self._open.__exit__(type(failure), failure, failure.__traceback__)
            raise
        finally:
            self._thread.shutdown()  # a write that is under way comes to its end
        self._open.__exit__(kind, error, trace)

    def write(self, clip: S2VClip) -> None:
        """Hand a clip's frames to the encoder; waits for those of the clip before."""
        assert isinstance(clip.frames, np.ndarray)
        frames = clip.frames[: self._left]
        self._left -= len(frames)
        first, last = self._wanted.request.clip_span or (0, self._wanted.plan.clips.num_clips)
        if clip.clip.index >= last:
            self._left = 0
        begins_at, self._num_passed = self._num_passed, self._num_passed + len(frames)
        if clip.clip.index < first:
            return
        self._wait()
        if self._writer is None:
            self._begin(begins_at)
        self._pending = self._thread.submit(self._encode, frames)

    def picturing(self, on_step: Any) -> Any:
        """`on_step`, and a picture of the step where a preview is wanted."""
        path = self._wanted.request.preview_path
        if path is None:
            return on_step
        plan = self._wanted.plan
        picture = StepPicture(path.with_suffix(".png"), apply_framing(plan.image.image, plan.framing))

        def show(pipeline: Any, step: int, timestep: Any, seen: dict[str, Any]) -> Any:
            picture.show(seen["denoised"], seen["reference_latents"])
            return on_step(pipeline, step, timestep, seen)

        return show

    def _begin(self, frame: int) -> None:
        """Open the files for a video that begins with a frame of the whole one."""
        wanted = self._wanted
        plan = wanted.plan
        span = plan.span
        if frame:
            offset = Fraction(frame) / plan.clips.fps
            rest = None if span.duration_s is None else span.duration_s - offset
            span = SoundSpan(span.start_s + offset, rest)
        plan = replace(plan, span=span)
        self._writer = self._open.enter_context(
            open_writer(wanted.request.output, plan, self._metadata, wanted.partial_run.unfinished_video)
        )
        if wanted.request.preview_path is not None:
            self._preview = self._open.enter_context(
                GrowingVideo(
                    wanted.request.preview_path,
                    height=plan.framing.height,
                    width=plan.framing.width,
                    fps=plan.clips.fps,
                    audio=plan.audio_source,
                    span=span,
                )
            )

    def _encode(self, frames: np.ndarray) -> None:
        assert self._writer is not None
        started = time.perf_counter()
        if self._preview is not None:
            self._preview.write(frames)
        self._writer.write(frames)
        self.seconds += time.perf_counter() - started

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
