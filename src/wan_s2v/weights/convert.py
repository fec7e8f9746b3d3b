"""Rewrite a checkpoint in another layout or precision, without ever holding more than one file's tensors.

Writes beside the target and renames at the end: there is never a half-written checkpoint under the target's name.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_s2v.errors import OutputError, UsageError
from wan_s2v.weights.checkpoint import Checkpoint, ModelFiles, build_on_meta, find_checkpoint
from wan_s2v.weights.configs import official_transformer_config, vae_config
from wan_s2v.weights.export import SUFFIXES, exported_bytes, write_single_file
from wan_s2v.weights.files import iterate_tensors
from wan_s2v.weights.int8 import write_int8
from wan_s2v.weights.load import sentencepiece_model, usual_audio_processor
from wan_s2v.weights.names import inverse, rename, text_encoder_names, transformer_names, vae_names
from wan_s2v.weights.places import SPEECH_FOLDER, TEXT_ENCODER_FILE, TOKENIZER_FOLDER, VAE_FILES
from wan_s2v.weights.shards import plan_shards, shard_file, write_index
from wan_s2v.weights.tensors import StoredTensor

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
    layout: Literal["official", "diffusers"] | None = None,
    quantization: Literal["fp8", "int8", "gguf-q8_0"] | None = None,
    torch_dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint as a folder, or its transformer as one quantized file.

    Without quantization no value changes unless `torch_dtype` asks for it; a model some of whose weights are stored in
    fewer bits is written in full, as float32, which holds each of their values.

    Args:
        source: as for `find_checkpoint`, or its result (for a single file with its components elsewhere).
        target: to make; must not exist.
        layout: of the folder; "diffusers" with int8, none with a single file.
        quantization: "fp8" and "gguf-q8_0" write the transformer alone, as a .safetensors file with a scale per tensor
            or as a .gguf file; "int8" writes a folder, its transformers and text encoder with a scale per row.
        torch_dtype: new dtype of the transformers. The other models keep theirs, which their numerics need.
        max_shard_bytes: size that a safetensors file of a folder stays under.
        progress: called after every tensor with the component, its bytes so far and in all.
    Raises:
        UsageError: a value that is not accepted, or a target that exists.
        CheckpointError: see `find_checkpoint`; a weight that is NaN or infinite.
        OutputError: no space, or the target cannot be written.
    """
    target = Path(target).expanduser().absolute()
    _check(target, layout, quantization, torch_dtype)
    if quantization == "fp8" or quantization == "gguf-q8_0":
        model = _only_transformer(source)
        needed = exported_bytes(model, quantization)
        with _partial(target, needed) as partial:
            partial.rmdir()
            write_single_file(model, partial, quantization, progress)
        return target
    checkpoint = source if isinstance(source, Checkpoint) else find_checkpoint(source)
    writer = _Writer(torch_dtype, max_shard_bytes, progress, int8=quantization == "int8")
    write = _write_official if layout == "official" else _write_diffusers
    with _partial(target, sum(writer.num_bytes(model) for model in checkpoint.models.values())) as partial:
        write(checkpoint, partial, writer)
    return target


def _check(target: Path, layout: str | None, quantization: str | None, torch_dtype: torch.dtype | None) -> None:
    """Raises: UsageError for values that are not accepted, alone or together."""
    if quantization not in (None, "fp8", "int8", "gguf-q8_0"):
        raise UsageError(f"quantization={quantization!r} is not accepted. Use 'fp8', 'int8' or 'gguf-q8_0'.")
    layouts = {None: ("official", "diffusers"), "int8": (None, "diffusers")}.get(quantization, (None,))
    if layout not in layouts:
        accepted = " or ".join("none" if item is None else repr(item) for item in layouts)
        raise UsageError(f"layout={layout!r} is not accepted with quantization={quantization!r}. Use {accepted}.")
    if torch_dtype is not None and (torch_dtype not in _ITEM_BYTES or quantization is not None):
        accepted = "torch.float32, bfloat16 or float16" if quantization is None else "none with quantization"
        raise UsageError(f"torch_dtype={torch_dtype} is not accepted. Use {accepted}.")
    if quantization in SUFFIXES and target.suffix != SUFFIXES[quantization]:
        raise UsageError(
            f"target={str(target)!r} is one file with quantization={quantization!r}. Call it *{SUFFIXES[quantization]}."
        )
    if target.exists():
        raise UsageError(f"target={str(target)!r} exists already. Pass one that does not.")


def _only_transformer(source: str | Path | Checkpoint) -> ModelFiles:
    """Raises: UsageError for a model with two."""
    others = frozenset({"vae", "text_encoder", "tokenizer", "audio_encoder", "audio_processor"})
    checkpoint = source if isinstance(source, Checkpoint) else find_checkpoint(source, skip=others)
    if "transformer_2" in checkpoint.models:
        raise UsageError(f"{checkpoint.root} has two transformers, a single file holds one. Use quantization='int8'.")
    return checkpoint.models["transformer"]


@contextmanager
def _partial(target: Path, num_bytes: int) -> Iterator[Path]:
    """An empty folder beside the target, which takes its name once the block is done.

    Raises: OutputError if there is no space, or nothing can be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_space(num_bytes, target.parent)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            yield partial
            partial.chmod(0o755 if partial.is_dir() else 0o644)  # mkdtemp makes it private
            partial.rename(target)
        finally:
            if partial.is_file():
                partial.unlink()
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{target} could not be written ({error}). Check the space and the permissions.") from error


class _Writer:
    """Writes the tensors of one model after the other."""

    def __init__(
        self, transformer_dtype: torch.dtype | None, max_shard_bytes: int, progress: Progress | None, *, int8: bool
    ) -> None:
        self.transformer_dtype = transformer_dtype
        self.max_shard_bytes = max_shard_bytes
        self.progress = progress
        self.int8 = int8

    def num_bytes(self, model: ModelFiles) -> int:
        """About what a model takes."""
        if self._is_int8(model):
            return sum(math.prod(stored.shape) for stored in model.tensors.values())
        return sum(_written_bytes(stored, self._dtype(model)) for stored in model.tensors.values())

    def safetensors(self, model: ModelFiles, folder: Path, stem: str, names: Mapping[str, str]) -> None:
        """`stem*.safetensors` in a folder, with an index if there are several; `names` maps ours to those written."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._is_int8(model):
            state = dict(self._tensors(model, model.tensors, names, 0))
            write_int8(state, folder / f"{stem}.safetensors", max_file_bytes=self.max_shard_bytes)
            return
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

    def _is_int8(self, model: ModelFiles) -> bool:
        """The others are small, and their numerics matter more."""
        return self.int8 and model.name in (*_TRANSFORMERS, "text_encoder")

    def _dtype(self, model: ModelFiles) -> torch.dtype | None:
        """Of all tensors of a model; None for that of each."""
        if self.transformer_dtype is not None and model.name in _TRANSFORMERS:
            return self.transformer_dtype
        return torch.float32 if any(stored.is_packed for stored in model.tensors.values()) else None


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
    _write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_FOLDER)
    _write_audio_processor(checkpoint.audio_processor, folder / SPEECH_FOLDER)
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
    _write_tokenizer(checkpoint.tokenizer, folder / "tokenizer")
    _write_speech(checkpoint, folder / "audio_encoder", writer)
    _write_audio_processor(checkpoint.audio_processor, folder / "audio_processor")
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
    if checkpoint.audio_processor is not None and checkpoint.audio_processor.is_file():  # a file without a config
        writer.safetensors(model, folder, "model", {})
        module: Any = build_on_meta("audio_encoder", model.config)
        module.config.save_pretrained(folder)
        return
    small = _small_files(model.files[0].parent)
    if any(stored.is_packed for stored in model.tensors.values()):
        _copy([path for path in small if not path.name.endswith(".index.json")], folder)
        writer.safetensors(model, folder, "model", {})
    else:
        _copy([*small, *model.files], folder)


def _write_tokenizer(place: Path | None, folder: Path) -> None:
    if place is None or place.is_dir():
        _copy(_small_files(place), folder)
        return
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model(place) or b"")


def _write_audio_processor(place: Path | None, folder: Path) -> None:
    if place is None or place.is_dir():
        _copy(_small_files(place), folder)
    else:
        usual_audio_processor().save_pretrained(folder)


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
    if dtype is None and not stored.is_packed:
        return stored.num_bytes
    return math.prod(stored.shape) * _ITEM_BYTES[dtype or torch.float32]  # what is packed is read as float32


def _require_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"The result needs {needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free. Pass another target."
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
