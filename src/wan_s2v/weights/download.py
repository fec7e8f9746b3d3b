"""Fetch a checkpoint from the Hugging Face hub: only the files that are needed, after checking that they fit.

The hub's own client shows the progress and resumes what was interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub import constants, errors

from wan_s2v.errors import DownloadError, UsageError
from wan_s2v.weights.names import S2V_REPOSITORY
from wan_s2v.weights.places import ALIASES, HUB_ID, SPEECH_FOLDER, TEXT_ENCODER_FILE, TOKENIZER_FOLDER

_OFFICIAL: Final = (
    "config.json",
    "configuration.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.json",
    "high_noise_model/*",
    "low_noise_model/*",
    "Wan2.*_VAE.pth",
    TEXT_ENCODER_FILE,
    f"{TOKENIZER_FOLDER}/*",
    f"{SPEECH_FOLDER}/*.json",
    f"{SPEECH_FOLDER}/model*.safetensors",
)
_DIFFUSERS: Final = ("*.json", "*/*.json", "*/*.safetensors", "tokenizer/*", "audio_processor/*")
_FREE_RESERVE = 1 << 30  # room for the file system and for unfinished parts
_NETWORK_ERRORS = (OSError, getattr(errors, "HTTPError", OSError))  # the second: hub 1 and later, over httpx


def download(model: str, target: str | Path | None = None) -> Path:
    """Fetch a checkpoint and give the folder it is in.

    Args:
        model: a hub id or "s2v-14b".
        target: folder for the files; by default the Hugging Face cache.
    Raises:
        UsageError: `model` is not a hub id.
        DownloadError: no such repository, no network, no space, or nothing in it that could be loaded.
    """
    repository = ALIASES.get(model.lower(), model)
    if not HUB_ID.fullmatch(repository):
        raise UsageError(f"model={model!r} is not a hub id. Pass one such as {S2V_REPOSITORY}, or s2v-14b.")
    try:
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = needed_files(sizes)
        if not wanted:
            raise DownloadError(f"{repository} has no checkpoint that can be loaded. S2V needs {S2V_REPOSITORY}.")
        _require_space(repository, sum(sizes[name] for name in wanted), target)
        folder = huggingface_hub.snapshot_download(repository, local_dir=target, allow_patterns=wanted)
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repository} is not on the hub, or needs a login. Check the name, or run `hf auth login`."
        ) from error
    except _NETWORK_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DownloadError(
            f"{repository} could not be fetched ({reason}). Check the network and run the same command; it resumes."
        ) from error
    return Path(str(folder))


def needed_files(sizes: Mapping[str, int]) -> list[str]:
    """The files of a repository that loading reads; the published S2V repository holds others beside them."""
    patterns = _DIFFUSERS if "model_index.json" in sizes else _OFFICIAL
    wanted = [name for name in sizes if any(fnmatch(name, pattern) for pattern in patterns)]
    weights = f"{SPEECH_FOLDER}/pytorch_model.bin"
    if weights in sizes and not any(fnmatch(name, f"{SPEECH_FOLDER}/model*.safetensors") for name in wanted):
        wanted.append(weights)
    return wanted if any(name.endswith((".safetensors", ".pth")) for name in wanted) else []


def _require_space(repository: str, num_bytes: int, target: str | Path | None) -> None:
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    folder = (Path(target) if target else cache).expanduser().absolute()
    have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # unfinished parts included
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if num_bytes - have + _FREE_RESERVE > free:
        raise DownloadError(
            f"{repository} needs {num_bytes / 2**30:.1f} GiB, {existing} has {free / 2**30:.1f} GiB free. Make room, or"
            " pass another folder as target."
        )
