"""The two networks that look at results, with the weights that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from wan_s2v.errors import CheckpointError
from wan_s2v.evaluation.mouth_reader import MouthReader
from wan_s2v.evaluation.sync import SyncScorer

ASSETS = Path(__file__).parent.parent / "assets" / "evaluation"
MOUTH_READER_FILE, SYNC_FILE = "mouth_reader.safetensors", "sync.safetensors"


@dataclass(frozen=True)
class Readers:
    """A mouth reader and a sync scorer, on one device."""

    mouth: MouthReader
    sync: SyncScorer


def load_readers(folder: Path = ASSETS, device: torch.device | str = "cpu") -> Readers:
    """The trained networks in float32, ready to read.

    Raises: CheckpointError if a file is missing, damaged or of other networks.
    """
    readers = Readers(MouthReader(), SyncScorer())
    _load(readers.mouth, folder / MOUTH_READER_FILE)
    _load(readers.sync, folder / SYNC_FILE)
    for network in (readers.mouth, readers.sync):
        network.to(device).eval().requires_grad_(False)
    return readers


def _load(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; `evaluate` needs it to read mouths. It comes with the package: install wan-s2v again."
        )
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path} does not hold this network's weights ({reason}). Install wan-s2v again."
        ) from error


def write_readers(readers: Readers, folder: Path) -> None:
    """Both networks as bfloat16 safetensors, under the names that `load_readers` looks for."""
    for network, name in ((readers.mouth, MOUTH_READER_FILE), (readers.sync, SYNC_FILE)):
        state = {
            key: tensor.detach().to("cpu", torch.bfloat16).contiguous() for key, tensor in network.state_dict().items()
        }
        save_file(state, folder / name)
