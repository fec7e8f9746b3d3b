"""T2V-A14B, I2V-A14B and TI2V-5B against numbers of the official code, float32 on CPU, from official folders.

Forwards within 1e-5 (2e-5 was what diffusers' sines of the timestep in float32 allowed). Latents of whole runs within
1e-4, pixels within 2e-3 (stored in float16).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_official_wan
from conftest import MEDIA, assert_close, load_golden
from PIL import Image
from torch.nn.functional import pad

from wan_s2v import load_pipeline
from wan_s2v.experts import stage_at
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.runtime.offload import Placement
from wan_s2v.schedulers import new_scheduler
from wan_s2v.weights import find_checkpoint, load_model
from wan_s2v.weights.names import TASKS

FORWARD_ATOL = 1e-5
LATENTS_ATOL = 1e-4
PIXELS_ATOL = 2e-3
TEXT_LEN = 10  # of the golden transformers; officially 512


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("official")
    return {task: write_official_wan(root / task, task) for task in ("t2v", "i2v", "ti2v")}


def padded(context: torch.Tensor) -> torch.Tensor:
    """(1, TEXT_LEN, C): zeros after the prompt, which the model attends to."""
    return pad(context, (0, 0, 0, TEXT_LEN - len(context)))[None]


@pytest.mark.parametrize(
    ("task", "case"),
    [("t2v", "a"), ("t2v", "batch_pad"), ("i2v", "a"), ("ti2v", "t2v"), ("ti2v", "i2v_token_t")],
)
def test_a_forward_equals_the_official_one(folders: dict[str, Path], task: str, case: str) -> None:
    model = find_checkpoint(folders[task], tasks=TASKS).models["transformer"]
    transformer = load_model(model, torch.float32, torch.device("cpu"))
    golden, _ = load_golden(f"wan_{task}_tiny")
    golden = {key.removeprefix(f"{case}."): value for key, value in golden.items() if key.startswith(f"{case}.")}
    x = torch.cat((golden["x"], golden["y"]), dim=1) if "y" in golden else golden["x"]
    tokens = x.shape[2] * x.shape[3] * x.shape[4] // 4
    timestep = golden["t"] if golden["t"].ndim == 1 else golden["t"][:, :tokens]  # ours has no padding tokens
    context = torch.cat([padded(golden[key]) for key in sorted(golden) if key.startswith("context.")])
    with torch.no_grad():
        made = transformer(x, timestep, context).sample
    assert_close(made, golden["out"], FORWARD_ATOL, f"{task} {case}")


RUNS = ["wan_t2v_run_unipc", "wan_t2v_run_dpm", "wan_i2v_run", "wan_ti2v_run_image", "wan_ti2v_run_text"]


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run_equals_the_official_one(folders: dict[str, Path], name: str) -> None:
    golden, metadata = load_golden(name)
    args = json.loads(metadata["args"])
    from_picture = "image" in args
    pipeline = load_pipeline(
        folders[args["task"]], task="i2v" if from_picture else None, torch_dtype=torch.float32, device_map="cpu"
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = new_scheduler(args["sample_solver"], args["shift"])
    assert pipeline.config.boundary_ratio == args.get("boundary")
    options = _options(golden, args)
    worked: list[tuple[str, float]] = []
    for expert in ("transformer", "transformer_2"):
        if getattr(pipeline, expert) is not None:
            getattr(pipeline, expert).condition_embedder.time = _noted(getattr(pipeline, expert), expert, worked)
    after: list[torch.Tensor] = []

    def record(_pipeline: Any, _step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        after.append(kwargs["latents"][0])
        return {}

    latents = pipeline(**options(), output_type="latent", callback_on_step_end=record).frames[0]
    # TI2V's first latent frame is the picture's, put back after each step; the stored numbers are from before that
    moving = slice(1, None) if args["task"] == "ti2v" and from_picture else slice(None)
    for step, expected in zip(args["kept_steps"], golden.get("latents_after_step", []), strict=True):
        assert_close(after[step][:, moving], expected[:, moving], LATENTS_ATOL, f"latents after step {step + 1}")
    assert_close(latents, golden["latents"], LATENTS_ATOL, "latents")
    _require_the_right_experts(worked, args)

    video = pipeline(**options(), output_type="pt").frames[0].transpose(0, 1) * 2 - 1
    assert list(video.shape) == golden["video_shape"].tolist()
    assert_close(video.mean(dim=(0, 2, 3)), golden["video_mean_per_frame"], PIXELS_ATOL, "mean per frame")
    assert_close(video[:, :, ::4, ::4], golden["video_every4px"].float(), PIXELS_ATOL, "pixels")


def _options(golden: dict[str, torch.Tensor], args: dict[str, Any]) -> Any:
    """Keywords of one run, with a new generator at every call."""
    scale = args["guide_scale"]
    guidance = {"guidance_scale": scale}
    if isinstance(scale, list):
        guidance = {"guidance_scale": scale[1], "guidance_scale_2": scale[0]}
    common = guidance | {
        "prompt_embeds": padded(golden["in.context"]),
        "negative_prompt_embeds": padded(golden["in.context_null"]),
        "num_frames": args["frame_num"],
        "num_inference_steps": args["sampling_steps"],
    }
    if "image" in args:
        common |= {"image": MEDIA / args["image"], "area": args["max_area"]}
    else:
        common |= {"height": args["size"][1], "width": args["size"][0]}
    return lambda: common | {"generator": torch.Generator().manual_seed(args["seed"])}


def _noted(transformer: WanVideoTransformer, expert: str, worked: list[tuple[str, float]]) -> Any:
    """The embedding of time, which every pass of the expert begins with; it notes the latest timestep."""
    embed = transformer.condition_embedder.time

    def time(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        worked.append((expert, float(timesteps.max())))
        return embed(timesteps)

    return time


def _require_the_right_experts(worked: list[tuple[str, float]], args: dict[str, Any]) -> None:
    """They change where `stage_at` says, with two passes per step."""
    expected = [stage_at(timestep, args.get("boundary"), 1.0).expert for _, timestep in worked]
    assert [expert for expert, _ in worked] == expected
    assert len(worked) == 2 * args["sampling_steps"]
    if "boundary" in args:
        assert set(expected) == {"transformer", "transformer_2"}


def test_the_condition_of_a_picture_equals_the_official_one(folders: dict[str, Path]) -> None:
    for name, task in (("wan_i2v_run", "i2v"), ("wan_ti2v_run_image", "ti2v")):
        golden, metadata = load_golden(name)
        args = json.loads(metadata["args"])
        pipeline = load_pipeline(folders[task], task="i2v", torch_dtype=torch.float32)
        picture = Image.open(MEDIA / args["image"]).convert("RGB")
        plan = pipeline.plan(picture, prompt="x", area=args["max_area"], num_frames=args["frame_num"])
        assert [plan.height, plan.width] == golden["video_shape"].tolist()[2:]
        with Placement(pipeline._models(), torch.device("cpu")) as placement:
            start = pipeline._encode_picture(plan, picture, placement)
        made = (start.beside if task == "i2v" else start.first)[0]
        if task == "i2v":
            mask = made[:4]
            assert torch.equal(mask[:, 0], torch.ones_like(mask[:, 0]))
            assert not mask[:, 1:].any()
            made = made[4:]
        assert_close(made, golden["condition"], LATENTS_ATOL, name)
