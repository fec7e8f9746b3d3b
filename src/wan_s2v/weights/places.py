"""Where the parts of a checkpoint lie: on disk or in the Hugging Face cache, in any layout, under any usual name.

Decides by names of files and folders, and by tensor names where a file may be called anything; checks no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from wan_s2v.errors import CheckpointError, UsageError
from wan_s2v.weights.files import read_headers, read_json
from wan_s2v.weights.names import REPOSITORIES, S2V_REPOSITORY, is_speech_encoder, is_text_encoder, is_vae

Layout = Literal["official", "diffusers", "single_file"]
ALIASES: Final = {  # "t2v-a14b" and "wan2.2-t2v-a14b" for Wan-AI/Wan2.2-T2V-A14B, and so on
    alias: repository
    for repository in REPOSITORIES.values()
    for name in [repository.rpartition("/")[2].lower()]
    for alias in (name, name.removeprefix("wan2.2-"))
}
SPEECH_FOLDER: Final = "wav2vec2-large-xlsr-53-english"
TOKENIZER_FOLDER: Final = "google/umt5-xxl"
TEXT_ENCODER_FILE: Final = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILES: Final = {16: "Wan2.1_VAE.pth", 48: "Wan2.2_VAE.pth"}  # by latent channels
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMFY_FOLDERS = ("vae", "text_encoders", "clip", "audio_encoders")  # in ComfyUI's folder of models
TOKENIZER_TENSOR: Final = "spiece_model"  # a SentencePiece model, in Comfy-Org's files of text encoders
_ANCHORS = ["config.json", "model_index.json"]
_TINY = Path(__file__).parent.parent / "assets" / "tiny"
PART_NAMES = {
    "vae": "VAE",
    "text_encoder": "text encoder",
    "tokenizer": "tokenizer",
    "audio_encoder": "speech encoder",
    "audio_processor": "speech feature extractor",
}


def locate(model: str | Path) -> Path:
    """The folder or file that `model` names, looking on disk and then in the Hugging Face cache."""
    if str(model) == "tiny":
        if not (_TINY / "model_index.json").is_file():
            raise CheckpointError(f"This build has no embedded model. Use another, e.g. model={S2V_REPOSITORY!r}.")
        return _TINY
    path = Path(model).expanduser()
    if path.exists():
        return path
    repository = ALIASES.get(str(model).lower(), str(model))
    if path.suffix in {".safetensors", ".gguf", ".pth"} or not HUB_ID.fullmatch(repository):
        raise UsageError(
            f"model={str(model)!r} does not exist. Pass a folder, a .safetensors or .gguf file, a hub id such"
            f" as {S2V_REPOSITORY}, or 'tiny'."
        )
    for local in (Path(repository), Path(repository.rpartition("/")[2])):
        if local.is_dir():
            return local
    try:
        # asks for one file: the cache never holds the whole repository, and our own check names what is missing
        found = huggingface_hub.snapshot_download(repository, local_files_only=True, allow_patterns=_ANCHORS)
        return Path(found)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository} is neither a folder here nor in the Hugging Face cache. Get it with:"
            f" wan-s2v download {repository}"
        ) from error


def layout_of(root: Path) -> Layout:
    if root.is_file():
        return "single_file"
    return "diffusers" if (root / "model_index.json").is_file() else "official"


def find_transformers(root: Path, layout: Layout) -> dict[str, Path]:
    """Where the transformers are; the high-noise expert comes first, as in diffusers."""
    if layout == "single_file":
        return {"transformer": root}
    if layout == "diffusers":
        names = ("transformer", "transformer_2")
        index = read_json(root / "model_index.json")
        if not (root / "transformer").is_dir():
            what = index.get("_class_name", "unknown")
            raise CheckpointError(f"{root} holds a {what} without a transformer; S2V needs {S2V_REPOSITORY}.")
        return {name: root / name for name in names if _present(index, name)}
    if (root / "high_noise_model").is_dir() or (root / "low_noise_model").is_dir():
        return {"transformer": root / "high_noise_model", "transformer_2": root / "low_noise_model"}
    return {"transformer": root}


def _present(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def find_others(places: Sequence[Path], channels: int) -> dict[str, Path | None]:
    """Where the models beside the transformer are; None where one is missing, no entry where a folder goes without.

    Args:
        places: folders and weight files; what is in an earlier one is taken.
        channels: of the transformer's latents, which decide between the VAEs of a folder.
    """
    found: dict[str, Path | None] = {}
    for place in places:
        parts = _in_folder(place, channels) if place.is_dir() else _in_file(place)
        found |= {name: path for name, path in parts.items() if found.get(name) is None}
    if found.get("tokenizer") is None and _holds_tokenizer(found.get("text_encoder")):
        found["tokenizer"] = found["text_encoder"]
    speech = found.get("audio_encoder")
    if found.get("audio_processor") is None and speech is not None and speech.is_file():
        found["audio_processor"] = speech  # whose settings are those of every large wav2vec2
    return found


def _in_folder(folder: Path, channels: int) -> dict[str, Path | None]:
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        return {name: _filled(folder / name) for name in PART_NAMES if _present(index, name)}
    speech = _speech_folder(folder)
    processor = speech if speech and (speech / "preprocessor_config.json").is_file() else folder / "audio_processor"
    names = sorted(VAE_FILES.values(), key=lambda name: name != VAE_FILES.get(channels))
    return {
        "vae": _first(folder, names, "vae") or _by_content(folder, is_vae),
        "text_encoder": _first(folder, [TEXT_ENCODER_FILE], "text_encoder") or _by_content(folder, is_text_encoder),
        "tokenizer": _tokenizer_folder(folder),
        "audio_encoder": speech or _by_content(folder, is_speech_encoder),
        "audio_processor": processor if (processor / "preprocessor_config.json").is_file() else None,
    }


def _in_file(file: Path) -> dict[str, Path | None]:
    """The one part that a file is; every other is missing."""
    names = read_headers([file])
    for part, accepts in (("vae", is_vae), ("text_encoder", is_text_encoder), ("audio_encoder", is_speech_encoder)):
        if accepts(names):
            return dict.fromkeys(PART_NAMES) | {part: file}
    raise CheckpointError(
        f"{file} is neither a Wan VAE nor a umT5 or wav2vec2 encoder (its tensors: {', '.join(list(names)[:2])}, …)."
        " Pass those as components, and the transformer as model."
    )


def _holds_tokenizer(text_encoder: Path | None) -> bool:
    return text_encoder is not None and text_encoder.is_file() and TOKENIZER_TENSOR in read_headers([text_encoder])


def _filled(path: Path) -> Path | None:
    return path if path.is_dir() and any(path.iterdir()) else None


def _tokenizer_folder(folder: Path) -> Path | None:
    """A folder with a vocabulary, without which transformers may build an empty tokenizer and say nothing."""
    for place in (folder / name for name in (TOKENIZER_FOLDER, "tokenizer", "umt5-xxl", ".")):
        stated = place / "tokenizer_config.json"
        of_bytes = stated.is_file() and read_json(stated).get("tokenizer_class") == "ByT5Tokenizer"  # needs no file
        if of_bytes or (place / "tokenizer.json").is_file() or (place / "spiece.model").is_file():
            return place
    return None


def _first(folder: Path, files: list[str], model_folder: str) -> Path | None:
    found = next((folder / name for name in files if (folder / name).is_file()), None)
    return found or (folder / model_folder if (folder / model_folder / "config.json").is_file() else None)


def _by_content(folder: Path, accepts: Callable[[Iterable[str]], bool]) -> Path | None:
    """The first weight file of a folder whose tensor names are accepted, whatever it is called."""
    folders = [folder, *(folder / name for name in _COMFY_FOLDERS if (folder / name).is_dir())]
    files = [path for place in folders for path in sorted(place.iterdir()) if path.is_file()]
    for path in (path for path in files if path.suffix in {".safetensors", ".pth"}):
        with suppress(CheckpointError):  # other people's files are allowed to lie beside ours
            if accepts(read_headers([path])):
                return path
    return None


def _speech_folder(folder: Path) -> Path | None:
    """The official wav2vec2 folder, or the only folder of that kind."""
    places = [path.parent for path in sorted(folder.glob("*/config.json"))]
    speech = [path for path in places if read_json(path / "config.json").get("model_type") == "wav2vec2"]
    found = [path for path in speech if any(path.glob("model*.safetensors")) or (path / "pytorch_model.bin").is_file()]
    official = folder / SPEECH_FOLDER
    return official if official in found else (found[0] if len(found) == 1 else None)


def usual_name(root: Path, name: str, channels: int) -> str:
    """What a missing part is called in the layout of `root`, for a transformer with so many latent channels."""
    if (root / "model_index.json").is_file():
        return f"{name}/"
    vae = VAE_FILES.get(channels, VAE_FILES[16])
    folders = {"tokenizer": f"{TOKENIZER_FOLDER}/", "text_encoder": TEXT_ENCODER_FILE, "vae": vae}
    return folders.get(name, f"{SPEECH_FOLDER}/")
