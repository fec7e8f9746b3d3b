"""Small VAEs with random weights, of every kind of structure."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan

_RESIDUAL = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
KINDS: dict[str, dict[str, Any]] = {
    "wan2.1": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 2},
    "wan2.1 shallow": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1, "dim_mult": [1, 2, 2]},
    "wan2.2": _RESIDUAL | {"base_dim": 4, "decoder_base_dim": 6, "z_dim": 16, "num_res_blocks": 2},
    # channels become fewer where frames are doubled: a shortcut gives two different frames
    "wan2.2 late": _RESIDUAL
    | {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1, "temperal_downsample": [True, True, False]},
    "deep": {"base_dim": 4, "z_dim": 16, "num_res_blocks": 3, "temperal_downsample": [False, True, True]},
}
MEAN, STD = 0.1, 1.5  # of every latent channel


def random_vae(kind: str, **changes: Any) -> AutoencoderKLWan:
    """The same weights at every call."""
    torch.manual_seed(5)
    config = {"latents_mean": [MEAN] * 16, "latents_std": [STD] * 16} | KINDS[kind] | changes
    if len(config.get("dim_mult", [1] * 4)) == 3:
        config["temperal_downsample"] = [True, True]
    return AutoencoderKLWan(**config).eval()
