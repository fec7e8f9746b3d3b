"""Rewrite a checkpoint in another layout or precision, without ever holding more than one file's tensors.

Writes into a folder beside the target and renames it at the end: there is never a half-written checkpoint under the
target's name.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_s2v.errors import OutputError, UsageError
from wan_s2v.weights.checkpoint import Checkpoint, ModelFiles, build_on_meta, find_checkpoint
from wan_s2v.weights.configs import official_transformer_config, vae_config
from wan_s2v.weights.files import StoredTensor, iterate_tensors
from wan_s2v.weights.names import inverse, rename, text_encoder_names, transformer_names, vae_names
from wan_s2v.weights.places import SPEECH_FOLDER, TEXT_ENCODER_FILE, TOKENIZER_FOLDER, VAE_FILES
from wan_s2v.weights.shards import plan_shards, shard_file, write_index

Progress = Callable[[str, int, int], None]  # component, bytes done, bytes in all

_TRANSFORMERS: Final = ("transformer", "transformer_2")
_WEIGHT_SUFFIXES: Final = {".safetensors", ".bin", ".pth", ".msgpack", ".h5"}
_ITEM_BYTES: Final = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
_CLASSES: Final = {
    "transformer": ("wan_s2v", "WanS2VTransformer"),
    "transformer_2": ("wan_s2v", "WanS2VTransformer"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "audio_encoder": ("transformers", "Wav2Vec2Model"),
    "audio_processor": ("transformers", "Wav2Vec2FeatureExtractor"),
}


def convert(
    source: str | Path | Checkpoint,
    target: str | Path,
    *,
    layout: Literal["official", "diffusers"],
    torch_dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint as an official or a diffusers folder; no value changes unless `torch_dtype` asks for it.

    Weights stored as int8 with a scale per row are written in full: float32 holds each of their values.

    Args:
        source: as for `find_checkpoint`, or its result (for a single file with its components elsewhere).
        target: folder to make; must not exist.
        torch_dtype: new dtype of the transformers. The other models keep theirs, which their numerics need.
        max_shard_bytes: size that a safetensors file stays under.
        progress: called after every tensor with the component, its bytes so far and in all.
    Raises:
        UsageError: a value that is not accepted, or a target that exists.
        CheckpointError: see `find_checkpoint`.
        OutputError: no space, or the target cannot be written.
    """
    if layout not in ("official", "diffusers"):
        raise UsageError(f"layout={layout!r} is not accepted. Use 'official' or 'diffusers'.")
    if torch_dtype is not None and torch_dtype not in _ITEM_BYTES:
        raise UsageError(f"torch_dtype={torch_dtype} is not accepted. Use torch.float32, bfloat16 or float16.")
    target = Path(target).expanduser().absolute()
    if target.exists():
        raise UsageError(f"target={str(target)!r} exists already. Pass a folder that does not.")
    checkpoint = source if isinstance(source, Checkpoint) else find_checkpoint(source)
    write = _write_official if layout == "official" else _write_diffusers
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_space(checkpoint, target.parent, torch_dtype)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            write(checkpoint, partial, _Writer(torch_dtype, max_shard_bytes, progress))
            partial.chmod(0o755)  # mkdtemp makes it private
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{target} could not be written ({error}). Check the space and the permissions.") from error
    return target


class _Writer:
    """Writes the tensors of one model after the other."""

    def __init__(self, transformer_dtype: torch.dtype | None, max_shard_bytes: int, progress: Progress | None) -> None:
        self.transformer_dtype = transformer_dtype
        self.max_shard_bytes = max_shard_bytes
        self.progress = progress

    def safetensors(self, model: ModelFiles, folder: Path, stem: str, names: Mapping[str, str]) -> None:
        """`stem*.safetensors` in a folder, with an index if there are several; `names` maps ours to those written."""
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: _written_bytes(stored, self._dtype(model)) for name, stored in model.tensors.items()}
        shards = list(plan_shards(sizes, self.max_shard_bytes))
        weight_map: dict[str, str] = {}
        done = total = 0
        for number, shard in enumerate(shards, start=1):
            file = shard_file(stem, number, len(shards))
            tensors = dict(self._tensors(model, shard, names, done))
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
            done += sum(model.tensors[name].num_bytes for name in shard)
        if len(shards) > 1:
            write_index(folder, stem, weight_map, total)

    def pickle(self, model: ModelFiles, file: Path, names: Mapping[str, str]) -> None:
        """A plain state dict, as the official VAE and text encoder are published."""
        torch.save(dict(self._tensors(model, model.tensors, names, 0)), file)

    def _tensors(
        self, model: ModelFiles, chosen: Iterable[str], names: Mapping[str, str], done: int
    ) -> Iterator[tuple[str, Tensor]]:
        stored = {(model.tensors[name].file, model.tensors[name].name): name for name in chosen}
        for item, tensor in iterate_tensors([model.tensors[name] for name in chosen]):
            name = stored[item.file, item.name]
            dtype = self._dtype(model) or tensor.dtype
            yield rename(name, names) or name, tensor.to(dtype).contiguous()
            done += item.num_bytes
            if self.progress:
                self.progress(model.name, done, model.total_bytes)

    def _dtype(self, model: ModelFiles) -> torch.dtype | None:
        return self.transformer_dtype if model.name in _TRANSFORMERS else None


def _write_official(checkpoint: Checkpoint, folder: Path, writer: _Writer) -> None:
    experts = "transformer_2" in checkpoint.models
    for name, sub in zip(_TRANSFORMERS, ("high_noise_model", "low_noise_model") if experts else (".",), strict=False):
        model = checkpoint.models[name]
        names = inverse(transformer_names(model.config))
        writer.safetensors(model, folder / sub, "diffusion_pytorch_model", names)
        config = official_transformer_config(model.config)
        if experts:
            config["boundary_ratio"] = checkpoint.boundary_ratio
        _write_json(folder / sub / "config.json", config)
    if checkpoint.sampling_defaults is not None:
        _write_json(folder / "configuration.json", {"sampling_defaults": checkpoint.sampling_defaults})
    vae, text = checkpoint.models.get("vae"), checkpoint.models.get("text_encoder")
    if vae:
        file = folder / VAE_FILES[48 if vae.config["is_residual"] else 16]
        writer.pickle(vae, file, _official_vae_names(vae))
    if text:
        writer.pickle(text, folder / TEXT_ENCODER_FILE, inverse(text_encoder_names(text.config)))
    _copy(_small_files(checkpoint.tokenizer), folder / TOKENIZER_FOLDER)
    _copy(_small_files(checkpoint.audio_processor), folder / SPEECH_FOLDER)
    _write_speech(checkpoint, folder / SPEECH_FOLDER, writer)  # last: both have a config.json, this is the model's


def _write_diffusers(checkpoint: Checkpoint, folder: Path, writer: _Writer) -> None:
    for name, model in checkpoint.models.items():
        if name == "audio_encoder":
            continue
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        writer.safetensors(model, folder / name, stem, {})
        module: Any = build_on_meta(name, model.config)
        if name == "text_encoder":
            module.config.architectures = ["UMT5EncoderModel"]
            module.config.save_pretrained(folder / name)
        else:
            module.save_config(folder / name)
    _copy(_small_files(checkpoint.tokenizer), folder / "tokenizer")
    _write_speech(checkpoint, folder / "audio_encoder", writer)
    _copy(_small_files(checkpoint.audio_processor), folder / "audio_processor")
    present = {path.name for path in folder.iterdir()}
    index = {name: list(_CLASSES[name]) if name in present else [None, None] for name in _CLASSES}
    about = {"_class_name": "WanS2VPipeline", "_diffusers_version": diffusers.__version__}
    stated = {"boundary_ratio": checkpoint.boundary_ratio, "sampling_defaults": checkpoint.sampling_defaults}
    _write_json(folder / "model_index.json", about | stated | index)


def _official_vae_names(vae: ModelFiles) -> dict[str, str]:
    """Ours → official; only for a VAE of which the official format, without any config, tells everything.

    Raises: UsageError for another.
    """
    names = inverse(vae_names(vae.config))
    read_back = vae_config({rename(name, names) or name: stored for name, stored in vae.tensors.items()})
    for key in ("latents_mean", "latents_std", "patch_size", "attn_scales", "temperal_downsample"):
        if vae.config[key] != read_back[key]:
            raise UsageError(f"The VAE's {key} cannot be stated in the official layout. Use layout='diffusers'.")
    return names


def _write_speech(checkpoint: Checkpoint, folder: Path, writer: _Writer) -> None:
    """The speech encoder's own files, copied as they are: they may hold more than we read, for the official code.

    It could not read int8, which is written as what it stands for.
    """
    model = checkpoint.models.get("audio_encoder")
    if model is None:
        return
    small = _small_files(model.files[0].parent)
    if any(stored.scale for stored in model.tensors.values()):
        _copy([path for path in small if not path.name.endswith(".index.json")], folder)
        writer.safetensors(model, folder, "model", {})
    else:
        _copy([*small, *model.files], folder)


def _small_files(folder: Path | None) -> list[Path]:
    """The files of a folder that hold no weights."""
    if folder is None:
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES]


def _copy(files: list[Path], target: Path) -> None:
    for path in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)


def _written_bytes(stored: StoredTensor, dtype: torch.dtype | None) -> int:
    if dtype is None and stored.scale is None:
        return stored.num_bytes
    return math.prod(stored.shape) * _ITEM_BYTES[dtype or torch.float32]  # int8 is read as float32


def _require_space(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    needed = sum(
        _written_bytes(stored, dtype if name in _TRANSFORMERS else None)
        for name, model in checkpoint.models.items()
        for stored in model.tensors.values()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"The result needs {needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free. Pass another target."
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
