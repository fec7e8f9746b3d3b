"""Find a checkpoint and check all of it before anything is allocated.

Reads headers only. What comes out says, for every tensor of every model, which file holds it, so that loading and
converting are plain loops. Layouts: the official folder, a diffusers folder, a single transformer file (safetensors or
GGUF) with the other models beside it, as folders or as files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.models.config import S2V_14B
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.models.video_transformer import WanVideoTransformer
from wan_s2v.ops.gguf import BLOCKS
from wan_s2v.weights.configs import (
    count,
    plain_transformer_config,
    speech_encoder_config,
    text_encoder_config,
    transformer_config,
    vae_config,
)
from wan_s2v.weights.files import WeightSet, find_weight_set, read_headers, read_json, read_metadata
from wan_s2v.weights.gguf import CONFIG_KEY
from wan_s2v.weights.names import (
    REPOSITORIES,
    TASKS,
    Task,
    inverse,
    is_speech_encoder,
    is_text_encoder,
    is_vae,
    plain_transformer_names,
    rename,
    require_known_format,
    require_task,
    speech_encoder_name,
    strip_prefix,
    task_of,
    text_encoder_names,
    transformer_names,
    vae_names,
)
from wan_s2v.weights.places import (
    PART_NAMES,
    SPEECH_FOLDER,
    TOKENIZER_TENSOR,
    Layout,
    find_others,
    find_transformers,
    layout_of,
    locate,
    usual_name,
)
from wan_s2v.weights.tensors import FLOAT8, StoredTensor

_AUDIO_PARTS = {"audio_encoder", "audio_processor"}
_BOUNDARIES: dict[Task, float] = {"t2v": 0.875, "i2v": 0.9}  # of the official settings; no published file states them
_FULL_WIDTHS: dict[Task, tuple[int, str]] = {"t2v": (40, "a14b"), "i2v": (40, "a14b"), "ti2v": (24, "5b")}  # heads
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LARGE = ("transformer", "transformer_2", "text_encoder")
_TABLES = ("shared.weight", "relative_attention_bias.weight", "token_type_embedding.weight")  # looked up
_TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight of the text encoder


@dataclass(frozen=True)
class ModelFiles:
    """One model: the keywords of its class, and where each of its tensors is, by our name."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted({stored.file for stored in self.tensors.values()}))

    @property
    def total_bytes(self) -> int:
        return sum(stored.num_bytes for stored in self.tensors.values())

    @property
    def is_int8(self) -> bool:
        return any(stored.dtype == "I8" for stored in self.tensors.values())

    def stays_packed(self, name: str) -> bool:
        """Whether a weight stays in memory as it is stored: a linear layer's, in float8 or GGUF blocks.

        Only of the models that hold most of the bytes: the transformers and the text encoder.
        """
        stored = self.tensors[name]
        is_linear = name.endswith(".weight") and len(stored.shape) == 2 and not name.endswith(_TABLES)
        whole_blocks = stored.dtype in BLOCKS and stored.shape[-1] % BLOCKS[stored.dtype].size == 0
        return self.name in _LARGE and is_linear and (stored.dtype in FLOAT8 or whole_blocks)

    @property
    def storage(self) -> str:
        """How the weights are stored: F8_E4M3, F8_E5M2, I8 or a block format such as Q4_K where any are packed, and
        else F32, F16 or BF16; of several, the one with the most values.
        """
        sizes: Counter[tuple[bool, str]] = Counter()
        for stored in self.tensors.values():
            sizes[stored.is_packed, stored.dtype] += math.prod(stored.shape)
        return max(sizes, key=lambda key: (key[0], sizes[key]))[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: the stored one, and bfloat16 where any values are packed into fewer bits."""
        if any(stored.is_packed for stored in self.tensors.values()):
            return torch.bfloat16
        return _DTYPES[self.storage]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, checked; `models` by component name, without those that were skipped or are not in it."""

    root: Path
    layout: Layout
    task: Task
    kind: str  # "s2v-14b", "t2v-a14b", "i2v-a14b", "ti2v-5b", or the task alone for any other size
    models: Mapping[str, ModelFiles]
    tokenizer: Path | None  # a folder, or a file of the text encoder that has it inside
    audio_processor: Path | None  # a folder, or the speech encoder's file, which stands for the usual settings
    boundary_ratio: float | None
    sampling_defaults: dict[str, Any] | None  # settings in which the model differs from S2V-14B, as it states them

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(model.total_bytes for model in self.models.values())


def find_checkpoint(
    model: str | Path,
    *,
    components: str | Path | Sequence[str | Path] | None = None,
    skip: frozenset[str] = frozenset(),
    boundary_ratio: float | None = None,
    tasks: frozenset[Task] = frozenset({"s2v"}),
) -> Checkpoint:
    """Everything that loading needs to know, after checking every file, name and shape.

    Args:
        model: a folder, a transformer's .safetensors or .gguf file, a hub id that was downloaded before, or "tiny".
        components: where the other models of a single file are: a folder, or a list of files and folders; by default
            the file's own folder. ComfyUI's folder of models is one of those accepted.
        skip: components that will not be used and may be absent, e.g. {"text_encoder", "tokenizer"}.
        boundary_ratio: noise level (0…1) where the second expert takes over, if the checkpoint does not state it.
        tasks: what the model may do; one that does something else is refused by its name.
    Raises:
        UsageError: `model` or `components` does not exist.
        CheckpointError: anything missing, damaged, of another model or contradictory.
    """
    root = locate(model)
    given = _component_places(components)
    layout = layout_of(root)
    transformers = find_transformers(root, layout)
    headers = {name: _transformer_headers(place, len(transformers) > 1, tasks) for name, place in transformers.items()}
    task = _task(transformers["transformer"], headers["transformer"][0])
    places = given or [root.parent if root.is_file() else root]
    channels = _latent_channels(headers["transformer"][0])
    skip = skip if task == "s2v" else skip | _AUDIO_PARTS
    others = {name: place for name, place in find_others(places, channels).items() if name not in skip}
    _require_complete(root, task, transformers, [weights for _, weights in headers.values()], others)
    models = {name: _transformer(name, place, headers[name][0]) for name, place in transformers.items()}
    for name, read in (("vae", read_vae), ("text_encoder", read_text_encoder), ("audio_encoder", read_audio_encoder)):
        place = others.get(name)
        if place is not None:
            models[name] = read(place)
    _require_fit(models)
    ratio = _boundary(root, boundary_ratio, _BOUNDARIES.get(task)) if len(transformers) > 1 else None
    defaults = _sampling_defaults(root)
    kind = _kind(task, models["transformer"].config)
    tokenizer, processor = others.get("tokenizer"), others.get("audio_processor")
    return Checkpoint(root, layout, task, kind, models, tokenizer, processor, ratio, defaults)


def read_task(model: str | Path, wanted: str | None = None) -> Task:
    """What a model does, from the headers of its transformer alone.

    Args:
        wanted: what it must do, if given: "s2v", "t2v", "i2v" or "ti2v". A TI2V model also makes videos from text
            alone (t2v) or from a picture (i2v).
    Raises: UsageError if it does something else; else as `find_checkpoint`.
    """
    if wanted is not None and wanted not in TASKS:
        raise UsageError(f"task={wanted!r} is not accepted. Choose s2v, t2v, i2v or ti2v, or leave it out.")
    root = locate(model)
    transformers = find_transformers(root, layout_of(root))
    headers, _ = _transformer_headers(transformers["transformer"], len(transformers) > 1, TASKS)
    found = _task(transformers["transformer"], headers)
    accepted = {"ti2v", "t2v", "i2v"} if found == "ti2v" else {found}
    if wanted is not None and wanted not in accepted:
        raise UsageError(f"task={wanted!r}, but {model} is a model for {found}. Leave task out, or pass another model.")
    return found


def _task(place: Path, headers: Mapping[str, StoredTensor]) -> Task:
    """By the tensors, or by what the config states where the telling ones are missing."""
    found, config = task_of(headers), place / "config.json"
    if found is None and config.is_file():
        stated = read_json(config).get("model_type")
        found = next((task for task in REPOSITORIES if task == stated), None)
    return found or "s2v"


def _kind(task: Task, config: Mapping[str, Any]) -> str:
    if task == "s2v":
        return "s2v-14b" if config == S2V_14B else "s2v"
    heads, size = _FULL_WIDTHS[task]
    is_full = (config["num_attention_heads"], config["attention_head_dim"]) == (heads, 128)
    return f"{task}-{size}" if is_full else task


def _component_places(components: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """Raises: UsageError if one of them does not exist, or a single one is not a folder."""
    if components is None:
        return []
    single = isinstance(components, str | Path)
    places = [
        Path(place).expanduser() for place in ([components] if isinstance(components, str | Path) else components)
    ]
    for place in places:
        if not (place.is_dir() or (place.is_file() and not single)):
            raise UsageError(
                f"components={str(place)!r} is not a folder. Pass the folder of the VAE and encoders, or a list of"
                " their files."
            )
    return places


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """A short id of every model's weights: names, types and shapes, and a few samples of each file's bytes.

    It tells checkpoints apart without reading tens of gigabytes; it is no proof against tampering.
    """
    ids = {}
    for name, model in checkpoint.models.items():
        digest = hashlib.sha256()
        for stored in sorted(model.tensors.values(), key=lambda item: item.name):
            digest.update(f"{stored.name} {stored.dtype} {stored.shape}\n".encode())
        for file in model.files:
            size = file.stat().st_size
            with file.open("rb") as opened:
                for part in range(16):
                    opened.seek(size * part // 16)
                    digest.update(opened.read(4096))
        ids[name] = digest.hexdigest()[:16]
    return ids


def build_on_meta(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module of a component, without memory."""
    with torch.device("meta"):
        if name in {"transformer", "transformer_2"}:
            return WanS2VTransformer(**config) if "audio_inject_layers" in config else WanVideoTransformer(**config)
        if name == "vae":
            return cast(nn.Module, AutoencoderKLWan(**config))
        if name == "text_encoder":
            # eager attention: bit-equal to the official code, which sdpa is not in bf16
            return UMT5EncoderModel(UMT5Config.from_dict({**config, "attn_implementation": "eager"}))
        return Wav2Vec2Model(Wav2Vec2Config.from_dict(dict(config)))


def _transformer_headers(
    place: Path, two_experts: bool, tasks: frozenset[Task]
) -> tuple[dict[str, StoredTensor], WeightSet]:
    """Tensors of a transformer's files that are there; another model is recognised once all of them are."""
    weights = WeightSet((place,), ()) if place.is_file() else find_weight_set(place, "diffusion_pytorch_model")
    headers = strip_prefix(read_headers(weights.files))
    if not weights.missing:
        require_task(headers, str(place), two_experts, tasks)
    return headers, weights


def _latent_channels(headers: Mapping[str, StoredTensor]) -> int:
    """Of the VAE; an I2V transformer takes those of the picture and a mask beside them."""
    stored = headers.get("patch_embedding.weight")
    return stored.shape[1] if stored and len(stored.shape) == 5 and task_of(headers) != "i2v" else 16


def _require_complete(
    root: Path,
    task: Task,
    transformers: Mapping[str, Path],
    weights: list[WeightSet],
    others: Mapping[str, Path | None],
) -> None:
    """Raises: CheckpointError that lists everything missing at once."""
    missing = [str(path.relative_to(root)) for item in weights for path in item.missing if path.is_relative_to(root)]
    folders = [place for place in transformers.values() if not place.is_file()]
    missing += [str((p / "config.json").relative_to(root)) for p in folders if not (p / "config.json").is_file()]
    channels = 48 if task == "ti2v" else 16
    absent = [name for name, place in others.items() if place is None]
    missing += [f"the {PART_NAMES[name]} ({usual_name(root, name, channels)})" for name in absent]
    if missing:
        where = f" --target {root}" if root.is_dir() else ""
        raise CheckpointError(
            f"{root} is not complete; missing: {', '.join(missing)}. Get the rest with: wan-s2v download"
            f" {REPOSITORIES[task]}{where}"
        )


def _transformer(name: str, place: Path, headers: Mapping[str, StoredTensor]) -> ModelFiles:
    if place.is_file():
        stated, where = _stated_in_file(place), str(place)
    else:
        stated, where = read_json(place / "config.json"), str(place / "config.json")
    task = task_of(headers) or "s2v"
    if task != "s2v":
        return _plain_transformer(name, task, headers, stated, where)
    if "casual_audio_encoder.weights" not in headers:
        config = {**S2V_14B, **_keywords(stated, S2V_14B)}
        _require_buckets(config["motion_buckets"], where)
        return _checked(name, config, headers, {}, str(place))
    config = transformer_config(headers, stated, where)
    return _checked(name, config, headers, transformer_names(config), str(place))


def _plain_transformer(
    name: str, task: Task, headers: Mapping[str, StoredTensor], stated: Mapping[str, Any], where: str
) -> ModelFiles:
    if "head.head.weight" in headers:
        config = plain_transformer_config(task, headers, stated, where)
        return _checked(name, config, headers, plain_transformer_names(config), where)
    known = inspect.signature(WanVideoTransformer.__init__).parameters
    defaults = {key: item.default for key, item in known.items() if key != "self"}
    return _checked(name, defaults | _keywords(stated, defaults), headers, {}, where)


def _require_buckets(buckets: Any, where: str) -> None:
    """Raises: CheckpointError unless every patch size has at least one patch's worth of frames."""
    known = isinstance(buckets, tuple) and 1 <= len(buckets) <= 3
    if not known or not all(isinstance(frames, int) and frames >= 2**level for level, frames in enumerate(buckets)):
        raise CheckpointError(
            f"{where}: motion_buckets={buckets!r} is not accepted. State one to three numbers of latent frames that are"
            " at least 1, 2 and 4, such as [1, 2, 16]."
        )


def _stated_in_file(file: Path) -> dict[str, Any]:
    """The config in a single file's metadata; {} where it has none, as published ones have not."""
    metadata = read_metadata(file)
    text = metadata.get("config") or metadata.get(CONFIG_KEY) or "{}"
    try:
        stated = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file}: its metadata key config is not JSON ({error}).") from error
    return stated if isinstance(stated, dict) else {}


def _keywords(stated: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items() if key in known}


def read_vae(place: Path) -> ModelFiles:
    """A Wan VAE: an official file, or a diffusers folder."""
    if place.is_file():
        headers = read_headers([place])
        if not is_vae(headers):
            raise CheckpointError(f"{place} is not a Wan VAE (its tensors: {', '.join(list(headers)[:2])}, …).")
        require_known_format(headers, str(place))
        config = vae_config(headers)
        return _checked("vae", config, headers, vae_names(config), str(place))
    stated = read_json(place / "config.json")
    known = dict(inspect.signature(AutoencoderKLWan.__init__).parameters)
    config = {key: stated.get(key, item.default) for key, item in known.items() if key != "self"}
    return _checked("vae", config, _folder_headers(place, "diffusion_pytorch_model"), {}, str(place))


def read_text_encoder(place: Path) -> ModelFiles:
    """A umT5 encoder: an official or Comfy-Org file, or a transformers folder."""
    if place.is_dir():
        config = _stated_of(place, "umt5")
        return _checked("text_encoder", config, _folder_headers(place, "model"), {}, str(place))
    headers = read_headers([place])
    if not is_text_encoder(headers):
        raise CheckpointError(f"{place} is not a umT5 encoder (its tensors: {', '.join(list(headers)[:2])}, …).")
    official = headers
    if "shared.weight" in headers:  # Comfy-Org's file: names as in transformers, and the tokenizer as one more tensor
        headers = {name: item for name, item in headers.items() if name not in {_TIED, TOKENIZER_TENSOR}}
        table = inverse(text_encoder_names({"num_layers": count(headers, "encoder.block")}))
        official = {rename(name, table) or name: item for name, item in headers.items()}
    require_known_format(headers, str(place))
    config = text_encoder_config(official)
    return _checked("text_encoder", config, official, text_encoder_names(config), str(place))


def read_audio_encoder(place: Path) -> ModelFiles:
    """A wav2vec2 encoder in a transformers folder or a single file, with or without heads for other tasks."""
    if place.is_file():
        headers = read_headers([place])
        if not is_speech_encoder(headers):
            raise CheckpointError(
                f"{place} is not a wav2vec2 encoder (its tensors: {', '.join(list(headers)[:2])}, …)."
            )
        require_known_format(headers, str(place))
        config = speech_encoder_config({speech_encoder_name(name): item for name, item in headers.items()})
    else:
        config = _stated_of(place, "wav2vec2")
        legacy = place / "pytorch_model.bin"
        safe = find_weight_set(place, "model")
        headers = read_headers([legacy]) if safe.missing and legacy.is_file() else _folder_headers(place, "model")
    # no masking: it acts in training only, and its vector is missing from some files
    config = config | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    expected = build_on_meta("audio_encoder", config).state_dict()
    renamed = {speech_encoder_name(name): item for name, item in headers.items()}
    # heads for other tasks are not ours to judge
    return _checked("audio_encoder", config, {n: i for n, i in renamed.items() if n in expected}, {}, str(place))


def _stated_of(folder: Path, model_type: str) -> dict[str, Any]:
    stated = read_json(folder / "config.json")
    if stated.get("model_type") != model_type:
        raise CheckpointError(f"{folder} holds a {stated.get('model_type')} model; {model_type} is needed there.")
    return stated


def _folder_headers(folder: Path, stem: str) -> dict[str, StoredTensor]:
    weights = find_weight_set(folder, stem)
    if weights.missing:
        names = ", ".join(path.name for path in weights.missing)
        raise CheckpointError(f"{folder} is not complete; missing: {names}. Fetch the checkpoint again.")
    headers = read_headers(weights.files)
    require_known_format(headers, str(folder))
    return headers


def _checked(
    name: str, config: Mapping[str, Any], headers: Mapping[str, StoredTensor], table: Mapping[str, str], where: str
) -> ModelFiles:
    """Compare names and shapes with the module's; an empty table means that the names are already ours.

    Raises: CheckpointError with the count and the first of what is missing, unknown or misshaped.
    """
    expected = {key: tuple(value.shape) for key, value in build_on_meta(name, config).state_dict().items()}
    if name == "text_encoder":
        expected.pop(_TIED)
        headers = {key: item for key, item in headers.items() if key != _TIED}
    tensors = {(rename(key, table) if table else key) or key: item for key, item in headers.items()}
    published = inverse(table)
    missing = [rename(key, published) or key for key in expected if key not in tensors]
    unknown = [item.name for key, item in tensors.items() if key not in expected]
    if missing:
        raise CheckpointError(f"{where} lacks {len(missing)} weights, first: {missing[0]}. Fetch the checkpoint again.")
    if unknown:
        raise CheckpointError(
            f"{where} holds {len(unknown)} weights that this model does not have, first: {unknown[0]}. It belongs to"
            " another model or variant."
        )
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{where}: {tensors[key].name} has shape {tensors[key].shape} instead of {shape}. The config and the"
                " weights belong to different checkpoints."
            )
    return ModelFiles(name, config, {key: tensors[key] for key in expected})


def _require_fit(models: Mapping[str, ModelFiles]) -> None:
    """Raises: CheckpointError where two models of the checkpoint cannot work together."""
    for problem in _misfits(models):
        raise CheckpointError(f"{problem}. Take all models from one checkpoint.")


def _misfits(models: Mapping[str, ModelFiles]) -> Iterator[str]:
    config = models["transformer"].config
    if "transformer_2" in models:
        shared = ("in_channels", "out_channels", "pose_channels", "patch_size", "text_dim", "text_len", "audio_dim")
        other = models["transformer_2"].config
        differ = [key for key in shared if config.get(key) != other.get(key)]
        yield from (f"The experts differ in {key}: {config[key]} and {other[key]}" for key in differ)
    vae = models["vae"].config.get("z_dim", 16) if "vae" in models else config["out_channels"]
    if vae != config["out_channels"]:
        yield f"The VAE makes {vae} latent channels, the transformer takes {config['out_channels']}"
    text = models["text_encoder"].config["d_model"] if "text_encoder" in models else config["text_dim"]
    if text != config["text_dim"]:
        yield f"The text encoder is {text} wide, the transformer takes {config['text_dim']}"
    if "audio_encoder" in models:
        speech = models["audio_encoder"].config
        has = (speech["num_hidden_layers"] + 1, speech["hidden_size"])
        wants = (config["num_audio_layers"], config["audio_dim"])
        if has != wants:
            yield (
                f"The speech encoder gives {has[0]} states of width {has[1]}, the transformer takes {wants[0]} of width"
                f" {wants[1]} (those of {SPEECH_FOLDER})"
            )


def _sampling_defaults(root: Path) -> dict[str, Any] | None:
    """What the checkpoint itself says of how it is to be sampled; the published one says nothing."""
    for file in ("model_index.json", "configuration.json"):
        stated = read_json(root / file).get("sampling_defaults") if (root / file).is_file() else None
        if isinstance(stated, dict):
            return stated
        if stated is not None:
            raise CheckpointError(f"{root / file}: sampling_defaults={stated!r} is not an object. Correct the file.")
    return None


def _boundary(root: Path, given: float | None, usual: float | None) -> float:
    """The noise level where the experts change, in 0…1: as given, as stated, or as usual."""
    stated: Any = given
    for file in ("model_index.json", "high_noise_model/config.json", "configuration.json"):
        if stated is None and (root / file).is_file():
            stated = read_json(root / file).get("boundary_ratio")
    stated = usual if stated is None else stated
    if not isinstance(stated, int | float) or not 0 < stated < 1:
        raise CheckpointError(
            f"{root} has two experts but boundary_ratio is {stated}, where a number between 0 and 1 is needed. Pass"
            " boundary_ratio=…, or state it in high_noise_model/config.json."
        )
    return float(stated)
