"""Load the models of a checkpoint: built without memory, then filled tensor by tensor.

Finding and checking is in checkpoint.py. Tensors whose dtype is already right, and those that stay packed, stay mapped
from the file when loaded to the CPU, so that a machine with less memory than the checkpoint can still hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.ops.gguf import BLOCKS
from wan_s2v.runtime.packed import GGUFLinear, PackedLinear, ScaledLinear
from wan_s2v.weights.checkpoint import Checkpoint, ModelFiles, build_on_meta
from wan_s2v.weights.files import iterate_stored, read_json
from wan_s2v.weights.places import TOKENIZER_TENSOR
from wan_s2v.weights.sentencepiece import SentencePieceTokenizer
from wan_s2v.weights.tensors import StoredTensor, StoredValues

Progress = Callable[[str, int, int], None]  # component, bytes done, bytes in all


def load_components(
    checkpoint: Checkpoint,
    *,
    torch_dtype: torch.dtype,
    device: str | torch.device = "cpu",
    skip: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All components of the pipeline, in evaluation mode.

    Args:
        checkpoint: from `find_checkpoint`; nothing is checked again.
        torch_dtype: of the transformers: float32, bfloat16 or float16. The speech encoder is float32; the text encoder
            is float32 with float32 and bfloat16 otherwise, since umT5 overflows in float16; the VAE is float32, but
            bfloat16 where its weights are stored as int8, which are no more precise, unless float32 is asked for.
        device: where every tensor goes as it is read.
        skip: components to leave None.
        progress: called after every tensor with the component, its bytes so far and in all.
    Returns: transformer, transformer_2 (or None), boundary_ratio (or None), vae, text_encoder, tokenizer,
        audio_encoder, audio_processor.
    """
    if torch_dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"torch_dtype={torch_dtype} is not accepted. Use torch.float32, bfloat16 or float16.")
    text_dtype = torch.float32 if torch_dtype == torch.float32 else torch.bfloat16
    vae = checkpoint.models.get("vae")
    dtypes = {
        "transformer": torch_dtype,
        "transformer_2": torch_dtype,
        "vae": text_dtype if vae is not None and vae.is_int8 else torch.float32,
        "text_encoder": text_dtype,
        "audio_encoder": torch.float32,
    }
    components: dict[str, Any] = dict.fromkeys(dtypes)
    # before the weights: what can fail in a second must not fail after minutes
    components["tokenizer"] = None if "tokenizer" in skip else _tokenizer(checkpoint)
    components["audio_processor"] = None if "audio_processor" in skip else _audio_processor(checkpoint)
    for name, dtype in dtypes.items():
        if name in checkpoint.models and name not in skip:
            components[name] = load_model(checkpoint.models[name], dtype, torch.device(device), progress)
    components["boundary_ratio"] = checkpoint.boundary_ratio
    return components


def load_model(
    model: ModelFiles, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> nn.Module:
    """One model with its weights on `device`, computing in `dtype`.

    Linear layers that are stored in float8 or in GGUF blocks stay so, as `PackedLinear`; every other weight is in
    `dtype`, but in float32 where diffusers' transformer keeps it so. See `ModelFiles.stays_packed`.
    """
    module = build_on_meta(model.name, model.config)
    exact = set(module._keep_in_fp32_modules if isinstance(module, WanVideoTransformer) else ())
    names = {(stored.file, stored.name): name for name, stored in model.tensors.items()}
    done = 0
    for stored, values in iterate_stored(model.tensors.values()):
        # moved before it is converted: the bus carries the stored size and the device does the work
        scale = None if values.scale is None else values.scale.to(device)
        values = StoredValues(values.values.to(device), scale)
        name = names[stored.file, stored.name]
        if model.stays_packed(name):
            _replace_linear(module, name.removesuffix(".weight"), stored, values, dtype)
        else:
            path, _, leaf = name.rpartition(".")
            wanted = torch.float32 if exact & set(name.split(".")) else dtype
            value = values.expand(stored).to(wanted).contiguous()
            setattr(module.get_submodule(path), leaf, nn.Parameter(value))
        done += stored.num_bytes
        if progress:
            progress(model.name, done, model.total_bytes)
    if model.name == "text_encoder":
        module.get_submodule("encoder.embed_tokens").weight = module.get_submodule("shared").weight
    assert not any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())), model.name
    return module.eval()


def _replace_linear(
    module: nn.Module, path: str, stored: StoredTensor, values: StoredValues, dtype: torch.dtype
) -> None:
    """Put a packed layer in place of a linear one, whose bias may be there already or come later."""
    plain = module.get_submodule(path)
    assert isinstance(plain, nn.Linear)
    (rows, columns), (packed, scale) = stored.shape, values
    layer: PackedLinear
    if stored.dtype in BLOCKS:
        layer = GGUFLinear(packed.reshape(rows, -1), stored.dtype, columns, plain.bias, dtype)
    else:
        scale = torch.ones(1, device=packed.device) if scale is None else scale.float()
        layer = ScaledLinear(packed, scale.reshape(-1, 1), plain.bias, dtype)
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    if checkpoint.tokenizer is None:
        return None
    tokenizer = _read_tokenizer(checkpoint.tokenizer)
    text_encoder = checkpoint.models.get("text_encoder")
    if text_encoder and len(tokenizer) > text_encoder.config["vocab_size"]:
        raise CheckpointError(
            f"{checkpoint.tokenizer} has {len(tokenizer)} tokens, the text encoder knows"
            f" {text_encoder.config['vocab_size']}. Take both from one checkpoint."
        )
    return tokenizer


def _read_tokenizer(place: Path) -> Any:
    """Of a folder, or of a text encoder's file."""
    model = sentencepiece_model(place)
    if model is not None:
        return SentencePieceTokenizer(model, str(place))
    file = place / "tokenizer.json"
    if file.is_file() and not {"model", "added_tokens"} <= read_json(file).keys():
        raise CheckpointError(f"{file} is not a tokenizer. Fetch it again.")
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place} holds no readable tokenizer ({str(error).splitlines()[0]}). Fetch it again."
        ) from error


def sentencepiece_model(place: Path) -> bytes | None:
    """A serialized SentencePiece model, where a tokenizer is nothing else."""
    if place.is_file():
        with safe_open(place, "pt") as opened:
            return bytes(opened.get_tensor(TOKENIZER_TENSOR).numpy())
    alone = place / "spiece.model"
    return alone.read_bytes() if alone.is_file() and not (place / "tokenizer.json").is_file() else None


def _audio_processor(checkpoint: Checkpoint) -> Wav2Vec2FeatureExtractor | None:
    if checkpoint.audio_processor is None:
        return None
    if checkpoint.audio_processor.is_file():
        return usual_audio_processor()
    return Wav2Vec2FeatureExtractor.from_pretrained(checkpoint.audio_processor, local_files_only=True)


def usual_audio_processor() -> Wav2Vec2FeatureExtractor:
    """That of every published large wav2vec2: 16 kHz, normalised."""
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
