"""The official code's transformer and VAE on the shapes, and with the very weights, of ours.

Nothing of it is kept here: its files are read from a checkout of Wan-Video/Wan2.2 that the user names. Only the modules
of the network are imported, without the packages around them, which would ask for much that inference never calls. Its
`flash_attention`, which needs the package flash_attn, is replaced by PyTorch's attention with the cuDNN backend, on
Hopper about as fast as FlashAttention-3. Parameters are shared with our model, so both fit on one GPU, and their
results can be compared.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from s2v_meter import Meter, Record, difference
from s2v_model import SPEC, Inputs, Size, random_inputs
from s2v_stages import CLIPS, random_pixels
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_s2v import WanS2VPipeline
from wan_s2v.latents import encode_pixels, latent_statistics
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.weights.configs import official_transformer_config
from wan_s2v.weights.names import inverse, rename, transformer_names, vae_names

_PACKAGES = ("wan", "wan.modules", "wan.modules.s2v")
_NETWORK, _VAE = "wan.modules.s2v.model_s2v", "wan.modules.vae2_1"
# cuDNN refuses few keys, as the audio's five; the others stand in there.
_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def is_checkout(folder: Path) -> bool:
    return all((folder / f"{name.replace('.', '/')}.py").is_file() for name in (_NETWORK, _VAE))


def _import_modules(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Its modules of the transformer and of the VAE, with attention replaced."""
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    modules = importlib.import_module(_NETWORK), importlib.import_module(_VAE)
    for name, module in list(sys.modules.items()):
        if name.startswith("wan.") and hasattr(module, "flash_attention"):
            module.flash_attention = _attention  # type: ignore[attr-defined]
    return modules


def _attention(
    q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor | None = None, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    """(B, L, N, D) as its `flash_attention`; at batch one `k_lens` never hides a key, and no window is used."""
    turned_q, turned_k, turned_v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = nn.functional.scaled_dot_product_attention(turned_q, turned_k, turned_v)
    return out.transpose(1, 2).to(q.dtype)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside take no memory; other tensors stay on the CPU, where its loader leaves them too."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), False))

    with patch.object(nn.Module, "register_parameter", register_on_meta):
        yield


def _share(official: nn.Module, ours: nn.Module, names: dict[str, str], dtype: torch.dtype) -> Any:
    """Give the official module our parameters, copied only where we hold them otherwise; each must have its place."""
    tensors = {rename(name, names) or name: held.to(dtype).contiguous() for name, held in ours.state_dict().items()}
    official.load_state_dict(tensors, strict=True, assign=True)
    return official.requires_grad_(False).eval()


def _transformer(module: ModuleType, ours: WanS2VTransformer) -> Any:
    stated = official_transformer_config(ours.config)
    stated.pop("_class_name")
    with _parameters_on_meta():
        official = module.WanModel_S2V(**stated, text_dim=ours.config.text_dim)
    return _share(official, ours, inverse(transformer_names(ours.config)), ours.dtype)


def _vae(module: ModuleType, ours: Any) -> Any:
    config = ours.config
    with _parameters_on_meta():
        official = module.WanVAE_(
            dim=config.base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temperal_downsample),
        )
    return _share(official, ours, inverse(vae_names(config)), torch.float32)


@torch.no_grad()
def measure_official(
    folder: Path, pipeline: WanS2VPipeline, size: Size, num_frames: int, repeats: int, meter: Meter
) -> Record:
    """The same stages as of ours, and how far its results are from ours."""
    network, autoencoder = _import_modules(folder)
    ours, dtype = pipeline.transformer, pipeline.transformer.dtype
    inputs = random_inputs(ours.config, size, num_frames, dtype, meter.device)
    official = _transformer(network, ours)
    with torch.autocast(meter.device.type, dtype, enabled=dtype != torch.float32):
        steps = {name: _step(official, inputs, has_motion) for name, has_motion in CLIPS.items()}
        records = {name: meter.measure(step, repeats) for name, step in steps.items()}
        found = steps["later clip"]()[0][None]
    noise_pred = inputs.predict(ours, inputs.conditioning(ours, has_motion=True))
    records["noise_pred"] = difference(found, noise_pred)
    return records | _measure_vae(_vae(autoencoder, pipeline.vae), pipeline, inputs, size, repeats, meter)


def _step(official: Any, inputs: Inputs, has_motion: bool) -> partial[list[Tensor]]:
    """A forward with the arguments of its `generate`; first clips drop their motion tokens inside."""
    dtype = inputs.prompt.dtype
    return partial(
        official,
        [inputs.latents[0].to(dtype)],
        t=inputs.timestep,
        context=[inputs.prompt],
        seq_len=0,  # not read
        ref_latents=inputs.reference,
        motion_latents=inputs.motion,
        cond_states=torch.zeros_like(inputs.latents, dtype=dtype),
        audio_input=inputs.audio.to(dtype),
        motion_frames=[SPEC.motion_frames, SPEC.motion_latents],
        drop_motion_frames=not has_motion,
    )


def _measure_vae(
    official: Any, pipeline: WanS2VPipeline, inputs: Inputs, size: Size, repeats: int, meter: Meter
) -> Record:
    """Its VAE in float32, as it runs it; it decodes the whole history of a clip."""
    history = random_pixels(SPEC.motion_frames, size, meter.device)
    scale = [statistic.flatten() for statistic in latent_statistics(pipeline.vae, history)]
    latents = torch.cat((inputs.motion, inputs.latents), dim=2)
    encode, decode = partial(official.encode, history[None], scale), partial(official.decode, latents, scale)
    return {
        "encode hand-over": meter.measure(encode, repeats),
        "decode later clip": meter.measure(decode, repeats),
        "motion_latents": difference(encode()[0], encode_pixels(pipeline.vae, history)),
    }
