"""Several safetensors files in place of one, under the names that every library reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path


def plan_shards(sizes: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    """Names in groups whose sizes add up to at most the limit, in the order given; a larger one stands alone."""
    shard: list[str] = []
    filled = 0
    for name, num_bytes in sizes.items():
        if shard and filled + num_bytes > max_bytes:
            yield shard
            shard, filled = [], 0
        shard.append(name)
        filled += num_bytes
    yield shard


def shard_file(stem: str, number: int, count: int) -> str:
    """Name of a model's file number 1…count."""
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, stem: str, weight_map: Mapping[str, str], num_bytes: int) -> None:
    """Say which file holds which tensor, and how many bytes all tensors have."""
    index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    file = folder / f"{stem}.safetensors.index.json"
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
