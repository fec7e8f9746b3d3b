"""Sizes of the transformers this project knows by name."""

from __future__ import annotations

from typing import Any, Final

S2V_14B: Final[dict[str, Any]] = {
    "patch_size": (1, 2, 2),
    "in_channels": 16,
    "out_channels": 16,
    "pose_channels": 16,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "num_layers": 40,
    "freq_dim": 256,
    "text_dim": 4096,
    "text_len": 512,
    "eps": 1e-6,
    "audio_dim": 1024,
    "num_audio_layers": 25,
    "num_audio_tokens": 4,
    "audio_inject_layers": (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
    "use_adain": True,
    "motion_drop_mode": "padd",
    "motion_buckets": (1, 2, 16),
}
