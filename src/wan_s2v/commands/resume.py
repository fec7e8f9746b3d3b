"""Whether a run may go on from what an earlier one has kept: only if nothing that the frames depend on has changed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from wan_s2v import __version__
from wan_s2v.errors import OtherRunError, UsageError
from wan_s2v.ops.attention import choose_backends, chosen_backends
from wan_s2v.partial_run import PartialRun
from wan_s2v.plan import GenerationOptions, GenerationPlan
from wan_s2v.sidecar import file_digest

if TYPE_CHECKING:
    from wan_s2v.commands.request import OpenedModel, Preview, Request

# Options that do not change what the model makes, or that the plan states with more truth.
_NOT_COMPARED: Final = frozenset(
    {
        "prompt",
        "prompt_embeds",
        "negative_prompt_embeds",
        "vocals_path",
        "pose_video_path",
        "seed",
        "generator",
        "mark",
        "content_producer",
        "sign_certificate",
        "sign_key",
        "enable_cpu_offload",
        "use_fp16",
    }
)
_NOT_COMPARED_OF_PLAN: Final = frozenset({"options", "warnings"})
_SHOWN: Final = 3  # differences


def run_identity(request: Request, plan: GenerationPlan, model: OpenedModel) -> dict[str, Any]:
    """Everything that the frames of a run follow from, as JSON."""
    options = plan.options
    compared = [field.name for field in fields(GenerationOptions) if field.name not in _NOT_COMPARED]
    summary = {name: value for name, value in plan.summary().items() if name not in _NOT_COMPARED_OF_PLAN}
    return {
        "wan_s2v": __version__,
        "PyTorch": torch.__version__,
        **model.place,
        **({"CPU threads": torch.get_num_threads()} if model.device.type == "cpu" else {}),
        "weights": model.weights,
        "LoRAs": [[file_digest(lora.path), lora.expert, lora.weight] for lora in request.loras],
        **{name: file_digest(path) for name, path in request.inputs.items()},
        **{name: _plain(getattr(options, name)) for name in compared},
        **summary,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def check_same_run(kept: dict[str, Any], now: dict[str, Any], partial_run: PartialRun) -> None:
    """Raises: OtherRunError that shows what has changed since a run was kept."""
    before = kept["identity"]
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not changed:
        return
    shown = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed[:_SHOWN])
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise OtherRunError(
        f"{partial_run.folder} holds another run: {shown}{more}. Give the command that began it, to go on; or --fresh, "
        "to throw it away and begin anew."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def as_kept(plan: GenerationPlan, kept: dict[str, Any]) -> GenerationPlan:
    """The plan with the seeds and prompts of single clips that were made again."""
    seeds, prompts = tuple(kept["clip_seeds"]), tuple(kept["clip_prompts"])
    if not kept["redone"] or len(seeds) != plan.clips.num_clips:
        return plan
    return replace(plan, clip_seeds=seeds, clip_prompts=prompts)


def begin_run(wanted: Preview) -> dict[str, Any]:
    """Go on with the run that is kept, or keep this one from now on.

    Returns: its `run_identity`.
    Raises: OutputError if it cannot be written.
    """
    partial_run, plan = wanted.partial_run, wanted.plan
    kept = None if wanted.request.fresh else partial_run.read_run()
    if kept is not None:
        choose_backends(kept["attention"])  # which were chosen by time, and another one rounds differently
        return kept["identity"]
    partial_run.remove()  # of a run whose end was cut off
    identity = run_identity(wanted.request, plan, wanted.model)
    partial_run.write_run(
        {
            "identity": identity,
            "request": request_record(wanted),
            "seed": plan.seed,
            "clip_seeds": list(plan.clip_seeds),
            "clip_prompts": list(plan.clip_prompts),
            "redone": [],
            "finished": False,
            "attention": chosen_backends(),
        }
    )
    return identity


def request_record(wanted: Preview) -> dict[str, Any]:
    """A request as JSON, for `replay.request_from`."""
    request, options = wanted.request, wanted.plan.options
    choice = wanted.model.choice
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {
        "image": str(request.image.absolute()),
        "audio": None if request.audio is None else str(request.audio.absolute()),
        "model": {
            "model": choice.model,
            "components": None if choice.components is None else str(choice.components),
            "boundary_ratio": choice.boundary_ratio,
            "torch_dtype": choice.torch_dtype,
            "device": choice.device,
        },
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if isinstance(value, str | int | float | bool | Path)
        },
        "loras": [
            {"file": str(lora.path.absolute()), "weight": lora.weight, "transformer": lora.expert}
            for lora in request.loras
        ],
    }


def check_clip_span(request: Request, plan: GenerationPlan) -> None:
    """Raises: UsageError for clips that the video does not have."""
    if request.clip_span is None:
        return
    first, last = request.clip_span
    count = plan.clips.num_clips
    if not 0 <= first <= last < count:
        raise UsageError(
            f"--clips {first + 1}-{last + 1}: this video has {count} clip{'s' if count > 1 else ''}. "
            f"Give a number or a span from 1 to {count}, such as 1-{count}."
        )
