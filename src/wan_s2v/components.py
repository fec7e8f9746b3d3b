"""What the parts of a model say together: whether they belong to each other, and how the model is sampled."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLWan
from transformers import UMT5EncoderModel, Wav2Vec2Model

from wan_s2v.errors import CheckpointError
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.plan import ModelSpec


def model_spec(transformer: Any, vae: Any, sampling_defaults: dict[str, Any] | None) -> ModelSpec:
    """The spec of a model from its two configurations."""
    stride = vae.get("scale_factor_spatial") or 8
    patch = max(transformer["patch_size"][1:])
    return ModelSpec(size_multiple=stride * patch, **(sampling_defaults or {}))


def check_components(
    transformer: WanS2VTransformer,
    vae: AutoencoderKLWan,
    audio_encoder: Wav2Vec2Model,
    text_encoder: UMT5EncoderModel | None,
) -> None:
    """Raises: CheckpointError where parts of different models meet."""
    config = transformer.config
    pairs = [
        ("the VAE's latent channels", vae.config.z_dim, "in_channels", config.in_channels),
        ("the speech encoder's width", audio_encoder.config.hidden_size, "audio_dim", config.audio_dim),
        ("its hidden states", audio_encoder.config.num_hidden_layers + 1, "num_audio_layers", config.num_audio_layers),
    ]
    if text_encoder is not None:
        pairs.append(("the text encoder's width", text_encoder.config.d_model, "text_dim", config.text_dim))
    for what, found, name, wanted in pairs:
        if found != wanted:
            raise CheckpointError(
                f"{what[0].upper()}{what[1:]}: {found}; the transformer's {name}: {wanted}. "
                "These files belong to different models. Use the parts of one checkpoint."
            )
