"""The S2V transformer and its parts against numbers of the official code, float32 on CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import OFFICIAL_KEYS, write_transformer
from conftest import assert_close, load_golden

from wan_s2v.models.audio_injection import ADAIN_EPS, AdaIN, CausalAudioEncoder
from wan_s2v.models.config import S2V_14B
from wan_s2v.models.layers import sinusoidal_embedding
from wan_s2v.models.motion import MotionPacker
from wan_s2v.models.tokens import Grid, grid_positions
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops.norm import add_update, layer_norm, rms_norm
from wan_s2v.ops.rope import RotaryTable, apply_rotary, rotary_table
from wan_s2v.weights import find_checkpoint, load_model
from wan_s2v.weights.names import rename, transformer_names

ATOL = 1e-5  # outputs have a standard deviation near 1
CASES = {
    "A": ["first_clip", "later_clip_pose", "batch2_nonsquare", "short_motion", "add1", "add0"],
    "B": ["first_clip", "later_clip_pose"],
    "C": ["add2", "add1", "add0_later", "first_clip"],
}


EVERYTHING_ELSE = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})


def load_transformer(name: str, folder: Path) -> WanS2VTransformer:
    """Golden weights through the public path: written as an official folder, found, checked and loaded."""
    tensors, metadata = load_golden(f"{name}.weights")
    config = json.loads(metadata["config"])
    stated = {key: config[key] for key in OFFICIAL_KEYS if key in config}
    write_transformer(folder, tensors, stated, shards=2, dtype=torch.bfloat16)
    return load_model(find_checkpoint(folder, skip=EVERYTHING_ELSE).models["transformer"], torch.float32, "cpu")


@pytest.fixture(scope="module")
def transformers(tmp_path_factory) -> dict[str, WanS2VTransformer]:
    folder = tmp_path_factory.mktemp("transformers")
    return {name: load_transformer(f"s2v_model_{name}", folder / name) for name in CASES}


def _condition(model: WanS2VTransformer, golden: dict[str, torch.Tensor], metadata: dict[str, str]) -> Conditioning:
    motion_frames = json.loads(metadata["motion_frames"])[0]
    drop, pose = json.loads(metadata["drop_motion_frames"]), json.loads(metadata["pose"])
    context = [golden[key] for key in sorted(golden) if key.startswith("in.context.")]
    scene = model.prepare_scene(
        golden["in.ref"],
        golden["in.x"].shape[2],
        motion_latents=None if drop else golden["in.motion"],
        pose_latents=golden["in.cond"] if pose else None,
        add_last_motion=int(metadata["add_last_motion"]),
    )
    return Conditioning(scene, model.prepare_text(context), model.prepare_audio(golden["in.audio"], motion_frames))


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
@torch.no_grad()
def test_noise_prediction_equals_the_official_model(transformers, name, case):
    golden, metadata = load_golden(f"s2v_model_{name}.{case}")
    model = transformers[name]
    trace: dict[str, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, args, _out, k=i: trace.__setitem__(f"block{k}_out", add_update(args[0].x, args[0].pending))
        )
        for i, block in enumerate(model.blocks)
    ]
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda _m, args: trace.__setitem__("block0_in", args[0].x)))
    for k, attention in enumerate(model.audio_injector.attentions):
        hooks.append(
            attention.register_forward_hook(
                lambda _m, args, out, k=k: trace.update({f"inject{k}_in": args[0], f"inject{k}_out": out})
            )
        )
    hooks.append(
        model.condition_embedder.text_embedder.register_forward_hook(
            lambda _m, _i, out: trace.__setitem__("context", out)
        )
    )
    conditioning = _condition(model, golden, metadata)
    out = model(golden["in.x"], golden["in.t"], conditioning)
    for hook in hooks:
        hook.remove()
    table = torch.stack(conditioning.scene.rotary, dim=-1)
    trace["freqs_head0"] = table[None]
    rows = [model.condition_embedder.time(golden["in.t"][:, None])[1], conditioning.scene.context_modulation]
    trace["e0"] = torch.cat([r.expand(out.shape[0], -1, -1, -1) for r in rows], dim=2)
    for key in sorted(golden):
        if key.startswith("mid.") and key[4:] in trace:
            assert_close(trace[key[4:]].reshape(golden[key].shape), golden[key], ATOL, key)
    assert_close(out, golden["out"], ATOL, f"{name}.{case}")


@pytest.mark.parametrize("case", ["first_clip", "later_clip_pose"])
@torch.no_grad()
def test_audio_tokens_skip_the_history_as_officially(transformers, case):
    golden, metadata = load_golden(f"s2v_model_A.{case}")
    model = transformers["A"]
    motion_frames, skip = json.loads(metadata["motion_frames"])
    history = golden["in.audio"][..., :1].expand(-1, -1, -1, motion_frames)
    embeds = model.audio_encoder(torch.cat((history, golden["in.audio"]), dim=-1))
    assert_close(embeds.tokens[:, skip:], golden["mid.audio_tokens"], ATOL)
    assert_close(embeds.summary[:, skip:, None], golden["mid.audio_global"], ATOL)


@pytest.mark.parametrize("name", ["audio_encoder_adain", "audio_encoder_noglobal"])
@torch.no_grad()
def test_audio_encoder_equals_the_official_one(name):
    golden, metadata = load_golden(name)
    config = json.loads(metadata["config"])
    encoder = CausalAudioEncoder(25, config["dim"], config["out_dim"], config["num_token"], config["need_global"])
    official = {f"casual_audio_encoder.{key[2:]}": value for key, value in golden.items() if key.startswith("w.")}
    names = transformer_names(S2V_14B)
    ours = {rename(key, names).removeprefix("audio_encoder."): value for key, value in official.items()}
    encoder.load_state_dict(ours, strict=True)
    for key in (key for key in golden if key.endswith(".in")):
        length = key.removesuffix(".in")
        embeds = encoder(golden[key])
        assert_close(embeds.tokens, golden[f"{length}.tokens"], ATOL, key)
        if config["need_global"]:
            assert_close(embeds.summary[:, :, None], golden[f"{length}.global"], ATOL, key)


@pytest.mark.parametrize("name", ["framepack_padd", "framepack_drop"])
@torch.no_grad()
def test_motion_tokens_and_their_positions_equal_the_official_ones(name):
    golden, metadata = load_golden(name)
    config = json.loads(metadata["config"])
    dim = config["inner_dim"]
    packer = MotionPacker(16, dim, (1, 2, 2), config["drop_mode"], S2V_14B["motion_buckets"])
    packer.load_state_dict({key[2:]: value for key, value in golden.items() if key.startswith("w.")}, strict=True)
    for key in (key for key in golden if key.endswith(".in")):
        case = key.removesuffix(".in")
        tokens, grids = packer(golden[key][None], int(case[-1]))
        assert_close(tokens, golden[f"{case}.tokens"], ATOL, case)
        positions = torch.cat([grid_positions(grid) for grid in grids])
        table = torch.stack(rotary_table(positions, dim // config["num_heads"]), dim=-1)
        assert_close(table, golden[f"{case}.freqs_head0"], 1e-6, case)


def test_positions_and_rotary_tables_equal_the_official_ones():
    golden, metadata = load_golden("rope_tables")
    for head_dim in (14, 20, 128):
        for name, groups in metadata.items():
            grids = []
            for origin, end, span in json.loads(groups):
                count = tuple(e - o for o, e in zip(origin, end, strict=True))
                grids.append(Grid(tuple(origin), count, tuple(span)))
            positions = torch.cat([grid_positions(grid) for grid in grids])
            assert torch.equal(positions, golden[f"hd{head_dim}.{name}.ids"]), name
            table = torch.stack(rotary_table(positions, head_dim), dim=-1)
            if head_dim == 128:
                assert_close(table[::11], golden[f"hd128.{name}.cos_sin_every11"], 1e-6, name)
            else:
                assert_close(table, golden[f"hd{head_dim}.{name}.cos_sin"], 1e-6, name)


@torch.no_grad()
def test_units_equal_the_official_ones():
    golden, _ = load_golden("units")
    adain = AdaIN(24)
    adain.load_state_dict({"linear.weight": golden["adain.w"], "linear.bias": golden["adain.b"]})
    shift, scale = adain.modulation(golden["adain.temb"][:, None])
    out = layer_norm(golden["adain.x"], ADAIN_EPS) * (1 + scale) + shift
    assert_close(out, golden["adain.out"], 1e-6, "adain")
    assert_close(layer_norm(golden["ln.x"], 1e-6), golden["ln.out"], 1e-6, "ln")
    affine = layer_norm(golden["ln.x"], 1e-6, golden["ln_affine.w"], golden["ln_affine.b"])
    assert_close(affine, golden["ln_affine.out"], 1e-6, "ln_affine")
    assert_close(rms_norm(golden["rms.x"], golden["rms.w"], 1e-6), golden["rms.out"], 1e-6, "rms")
    for dim in (64, 256):
        assert_close(sinusoidal_embedding(golden["sin.t"], dim), golden[f"sin.out_dim{dim}"], 1e-6, "sinusoid")


def test_rotation_at_far_positions_equals_the_official_one():
    golden, _ = load_golden("units")
    start, count, span = golden["rope_big.start_count_range"]
    grid = Grid(tuple(start.tolist()), tuple(count.tolist()), tuple(span.tolist()))
    table = rotary_table(grid_positions(grid), golden["rope_big.x"].shape[-1])
    out = apply_rotary(golden["rope_big.x"], RotaryTable(*table))
    assert_close(out, golden["rope_big.out"], 2e-6, "rope_big")
