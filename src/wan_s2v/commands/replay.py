"""A video made again from its record, and single clips of one made anew."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from wan_s2v.commands.request import ModelChoice, Preview, Request, open_model, preview
from wan_s2v.commands.resume import as_kept, run_identity
from wan_s2v.errors import UsageError
from wan_s2v.partial_run import PartialRun
from wan_s2v.plan import MAX_SEED, GenerationOptions
from wan_s2v.sidecar import file_digest, read_sidecar
from wan_s2v.weights.lora import LoRAFile

_PATHS: Final = ("vocals_path", "pose_video_path", "sign_certificate", "sign_key")


def request_from(record: dict[str, Any], output: Path) -> tuple[Request, ModelChoice]:
    """The request that `resume.request_record` described. Raises: UsageError if it is not complete."""
    try:
        stated, model = record["options"], record["model"]
        options = {name: Path(value) if name in _PATHS and value else value for name, value in stated.items()}
        components = model["components"]
        choice = ModelChoice(**{**model, "components": None if components is None else Path(components)})
        loras = tuple(LoRAFile(Path(lora["file"]), lora["weight"], lora["transformer"]) for lora in record["loras"])
        image, audio = Path(record["image"]), None if record["audio"] is None else Path(record["audio"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"The record of the run is not complete ({error}). Make the video anew.") from error
    return Request(image, audio, output, GenerationOptions.from_keywords(options), loras=loras), choice


def plan_replay(sidecar: Path, output: Path, *, overwrite: bool) -> tuple[Preview, tuple[str, ...]]:
    """The plan that makes a video again, and what is other than when it was made, though it may not matter.

    Raises: UsageError where inputs or weights have changed.
    """
    record = read_sidecar(sidecar)
    request, choice = request_from(record["request"], output)
    request = replace(request, overwrite=overwrite, options=replace(request.options, seed=record["seed"]))
    before = record["identity"]
    for name, path in (("image", request.image), ("audio", request.audio)):
        if path is not None and file_digest(path) != before[name]:
            raise UsageError(f"{path} is not the {name} that the video was made of: its content has changed.")
    model = open_model(choice, request.options)
    if model.weights != before["weights"]:
        raise UsageError(f"The weights of {choice.model} are not those that the video was made with.")
    wanted = preview(request, model)
    seeds, prompts = record["clip_seeds"], record["clip_prompts"]
    plan = as_kept(wanted.plan, {"clip_seeds": seeds, "clip_prompts": prompts, "redone": True})
    now = run_identity(request, plan, model)
    notes = tuple(
        f"{name} was {before.get(name)}, is {now[name]}: frames may differ in their last bits."
        for name in ("wan_s2v", "PyTorch", "device", "dtype")
        if before.get(name) != now[name]
    )
    return replace(wanted, plan=plan), notes


def plan_redo(output: Path, clip: int, seed: int | None, prompt: str | None, *, dry_run: bool) -> Preview:
    """The plan that makes one clip of a kept run anew, and those that follow from it.

    Args:
        clip: from 0.
        seed, prompt: of that clip; a random seed and its old prompt if None.
    Raises: UsageError where the run was not kept, or has no such clip.
    """
    partial_run = PartialRun.beside(output)
    kept = partial_run.read_run()
    if kept is None:
        raise UsageError(
            f"{partial_run.folder} is not there: the clips of {output} were not kept. Make the video with "
            "--keep-clips; then single clips can be made again."
        )
    seeds, prompts = list(kept["clip_seeds"]), list(kept["clip_prompts"])
    if not 0 <= clip < len(seeds):
        raise UsageError(f"--redo-clip {clip + 1}: this video has clips 1 to {len(seeds)}. Give one of them.")
    seeds[clip] = secrets.randbelow(MAX_SEED) if seed is None else seed
    prompts[clip] = prompts[clip] if prompt is None else prompt
    request, choice = request_from(kept["request"], output)
    options = replace(request.options, seed=kept["seed"])
    request = replace(request, options=options, overwrite=True, keep_clips=True)
    wanted = preview(request, open_model(choice, options))
    redone: dict[str, Any] = {"clip_seeds": seeds, "clip_prompts": prompts, "redone": sorted({*kept["redone"], clip})}
    redone["finished"] = False
    if not dry_run:
        partial_run.forget_from(clip)
        partial_run.change_run(**redone)
    num_kept = sum(index < clip for index in partial_run.finished_clips())
    return replace(wanted, plan=as_kept(wanted.plan, redone), num_kept=num_kept)
