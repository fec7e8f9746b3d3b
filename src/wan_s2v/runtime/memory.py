"""How much memory a run takes, and what is given up so that it fits: decided from sizes, before any weight is loaded.

Policies in the order of what they cost: all parts stay on the device; the text encoder, which works once, leaves it to
the others; every part leaves it to the next; the blocks of the transformer come one after the other while others work;
and tokens go through them part by part. At each of them frames may go through the VAE in strips.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal

import torch

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.runtime.sizes import ModelSizes, PackedSize, Work, num_tokens
from wan_s2v.vae import fitting_latents

Offload = Literal["none", "text", "model", "block"]
OFFLOADS: Final[tuple[Offload, ...]] = ("none", "text", "model", "block")
_STRIPS: Final = (1, 2, 4, 8)
_TOKEN_PARTS: Final = (2, 4, 8)  # a 16th part would save no more than a fortieth of a forward's memory
SLOTS: Final = 2  # blocks on the device that are not to stay there: one works, the next one arrives

# What a block holds at once where our kernels run, counted from the tensors that are alive; not yet compared with a
# GPU's own count. The residual stream is float32; all else is as wide as the weights, in copies of the stream's shape:
# tokens, their keys and values, which 8-bit attention has rounded beside them; and of a part of the tokens the queries
# and what they attended to. Plain PyTorch holds most where it turns keys, in three and a half maps of float32.
_STREAM_BYTES: Final = 4
_KEPT_COPIES: Final = {"kernels": 3, "eight-bit": 5, "plain": 3}
_PART_COPIES: Final = 2
_PLAIN_TURN_BYTES: Final = 14
# Maps of full resolution and four frames that are alive in the VAE: for each latent that goes through it at once, and
# for the past of its causal convolutions. Fitted to the peaks of the Wan2.1 VAE on an H100 at 832x480 and 1280x704, the
# convolutions' workspace included; the tensors alone are 5 maps for each latent.
_DECODER_MAPS: Final = 6.1
_DECODER_PAST: Final = 6.2
_ENCODER_MAPS: Final = 5.2
_ENCODER_PAST: Final = 4.8
_DECODE_MARGIN: Final = 20  # pixels on both sides of a strip that the costliest levels see
_ENCODE_MARGIN: Final = 72
_DEVICE_TO_SPARE: Final = 600 << 20  # bytes for libraries' workspaces and for what no block of memory fits exactly
_TEXT_COPIES: Final = 12  # maps of text_len x width in the text encoder, feed-forward and attention scores included


@dataclass(frozen=True)
class MemoryPolicy:
    """Where weights wait, and how frames go through the VAE.

    Args:
        offload: "none": all components stay on the device; "text": the text encoder is not there with the others;
            "model": one component is there at a time; "block": and of a transformer or text encoder only some blocks,
            the others arriving while those work.
        resident_blocks: of a transformer, with "block"; they stay there during a clip.
        vae_strips: of a frame that go through the VAE one after the other.
        token_parts: in which tokens go through a block's attentions and its feed-forward one after the other.
    """

    offload: Offload = "none"
    resident_blocks: int = 0
    vae_strips: int = 1
    token_parts: int = 1

    def stay_together(self, one: str, other: str) -> bool:
        """Whether two components may be on the device at once."""
        if self.offload == "none" or one == other:
            return True
        return self.offload == "text" and "text_encoder" not in (one, other)

    def lower(self, stage: str) -> MemoryPolicy | None:
        """What to try when memory ran out in a stage; None if nothing is left.

        Args:
            stage: "text", "encode", "denoise" or "decode".
        """
        if stage in ("encode", "decode") and self.offload != "none" and self.vae_strips < _STRIPS[-1]:
            return replace(self, vae_strips=2 * self.vae_strips)
        if self.resident_blocks:
            return replace(self, resident_blocks=self.resident_blocks // 2)
        if self.offload != OFFLOADS[-1]:
            return replace(self, offload=OFFLOADS[OFFLOADS.index(self.offload) + 1])
        if stage == "denoise" and self.token_parts < _TOKEN_PARTS[-1]:
            return replace(self, token_parts=2 * self.token_parts)
        return None

    @property
    def description(self) -> str:
        """In a few words, for people."""
        words = {
            "none": "everything stays there",
            "text": "the text encoder leaves after use",
            "model": "one part there at a time",
            "block": f"blocks arrive as they work, {self.resident_blocks} stay",
        }[self.offload]
        if self.token_parts > 1:
            words += f"; tokens go through them in {self.token_parts} parts"
        return words if self.vae_strips == 1 else f"{words}; frames through the VAE in {self.vae_strips} strips"


def weight_bytes(sizes: ModelSizes, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each component as it is loaded: the speech encoder in float32, the text encoder never in float16, and
    what stays packed as it is stored.
    """
    text = 4 if dtype == torch.float32 else 2
    widths = {"transformer": dtype.itemsize, "transformer_2": dtype.itemsize, "text_encoder": text}
    widths["vae"] = sizes.vae_dtype.itemsize
    packed = {name: sizes.packed.get(name, PackedSize(0, 0)) for name in sizes.parameters}
    return {
        name: (count - packed[name].parameters) * widths.get(name, 4)
        + packed[name].num_bytes
        + (sizes.lora_bytes if name.startswith("transformer") else 0)
        for name, count in sizes.parameters.items()
    }


def stage_bytes(sizes: ModelSizes, work: Work, dtype: torch.dtype, policy: MemoryPolicy) -> dict[str, int]:
    """Most bytes in use at once on the device in each stage: text, denoise, encode and decode.

    Speech is left out: its encoder is the smallest component and hears a minute at a time.
    """
    weights = weight_bytes(sizes, dtype)

    def present(component: str) -> int:
        return sum(
            _resident_bytes(sizes, policy, name, count)
            for name, count in weights.items()
            if policy.stay_together(component, name)
        )

    text_len = sizes.text_len
    transformers = [name for name in ("transformer", "transformer_2") if name in weights]
    texts = len(transformers) * work.num_prompts * 2 * sizes.num_layers * text_len * sizes.width * dtype.itemsize
    forward = max(_forward_bytes(sizes, work, dtype, policy, clip) for clip in work.clips)
    kept = _carried_past(sizes, work, policy) if policy.offload in ("none", "text") else 0  # else in main memory
    encodes_clip = work.num_encoded > 1 or any(has_motion for _, has_motion in work.clips)
    handed_over = _frame_bytes(work) if encodes_clip else 0
    found = {
        "denoise": max(present(name) for name in transformers) + texts + forward + kept,
        "encode": present("vae") + texts + handed_over + _encode_bytes(sizes, work, policy) + kept,
        "decode": present("vae") + texts + _decode_bytes(sizes, work, policy),
    }
    if "text_encoder" in weights:
        found["text"] = present("text_encoder") + _TEXT_COPIES * text_len * sizes.config["text_dim"] * dtype.itemsize
    return found


def peak_bytes(sizes: ModelSizes, work: Work, dtype: torch.dtype, policy: MemoryPolicy) -> int:
    """Most bytes in use at once on the device."""
    return max(stage_bytes(sizes, work, dtype, policy).values())


def choose_policy(
    sizes: ModelSizes, work: Work, dtype: torch.dtype, budget: int | None, least: Offload = "none"
) -> MemoryPolicy:
    """The cheapest policy that fits, or the one that takes least where none does.

    Args:
        budget: bytes of the device that the run may use; None for as many as it likes.
        least: what is given up in any case.
    """
    policy = MemoryPolicy(least)
    for policy in _policies(sizes, least):
        if budget is None or peak_bytes(sizes, work, dtype, policy) <= budget:
            return policy
    return policy


def _policies(sizes: ModelSizes, least: Offload) -> Iterator[MemoryPolicy]:
    """From the one that costs least time to the one that takes least memory."""
    for offload in OFFLOADS[OFFLOADS.index(least) :]:
        resident = range(sizes.num_layers - SLOTS - 1, -1, -1) if offload == "block" else (0,)
        for blocks, strips in product(resident, _STRIPS):
            yield MemoryPolicy(offload, max(blocks, 0), strips)
    for parts, strips in product(_TOKEN_PARTS, _STRIPS):
        yield MemoryPolicy(OFFLOADS[-1], 0, strips, parts)


def _resident_bytes(sizes: ModelSizes, policy: MemoryPolicy, name: str, count: int) -> int:
    """Bytes of a component's weights that are on the device while it works."""
    if policy.offload != "block":
        return count
    if name.startswith("transformer"):
        there = min(1.0, (policy.resident_blocks + SLOTS) / sizes.num_layers)
        derived = sizes.block_share * sizes.num_layers * (count - sizes.lora_bytes) + sizes.lora_bytes
        return int(count - sizes.block_bytes.get(name, derived) * (1 - there))
    if name == "text_encoder":  # its blocks are alike, and the table is most of the rest
        rest = sizes.text_table / sizes.parameters[name]
        return int(count * (rest + (1 - rest) * min(1.0, SLOTS / sizes.text_layers)))
    return count


def _forward_bytes(
    sizes: ModelSizes, work: Work, dtype: torch.dtype, policy: MemoryPolicy, clip: tuple[int, bool]
) -> int:
    """Of the transformer, beyond weights and the keys and values of prompts: at its highest, in a block."""
    layout, parts = work.layout(sizes.config, clip), policy.token_parts
    tokens = num_tokens(sizes.config, layout)
    kept = _KEPT_COPIES[sizes.blocks_run]
    # Before and after the GELU, where a LoRA keeps both from being one kernel.
    feed_forward = 1 + 2 * sizes.config["ffn_dim"] / sizes.width / parts
    most = dtype.itemsize * max(kept + _PART_COPIES / parts, feed_forward)
    if sizes.blocks_run == "plain":
        most = max(most, dtype.itemsize * kept + _PLAIN_TURN_BYTES)
    block = tokens * (_STREAM_BYTES + most)
    prepared = 4 * (tokens - layout.num_noise * (not work.has_pose))  # float32, as the scene keeps them
    return int((block + prepared) * sizes.width) * work.num_videos


def _encode_bytes(sizes: ModelSizes, work: Work, policy: MemoryPolicy) -> int:
    """Of the VAE's encoder at its highest, in a strip."""
    share = _strip_share(work, policy, _ENCODE_MARGIN)
    maps = _ENCODER_PAST + _ENCODER_MAPS * _latents_at_once(sizes, work, policy)
    return int(_map_bytes(sizes, work) * share * maps)


def _decode_bytes(sizes: ModelSizes, work: Work, policy: MemoryPolicy) -> int:
    """Of the VAE's decoder at its highest, in a strip; and the finished frames, of one video in parts, too."""
    share = _strip_share(work, policy, _DECODE_MARGIN)
    strip = _map_bytes(sizes, work) * share
    past = _carried_past(sizes, work, policy) or _DECODER_PAST * strip
    maps = past + _DECODER_MAPS * _latents_at_once(sizes, work, policy) * strip
    return int(maps) + (1 + work.num_videos) * _frame_bytes(work)


def _frame_bytes(work: Work) -> int:
    """Of the longest clip's pixels in float32."""
    return max(FRAMES_PER_LATENT * count for count, _ in work.clips) * 3 * 4 * work.height * work.width


def _carried_past(sizes: ModelSizes, work: Work, policy: MemoryPolicy) -> int:
    """The decoder's past of all strips, where it is kept from one clip to the next."""
    margins = 2 * _DECODE_MARGIN * (policy.vae_strips - 1) / max(work.height, work.width)
    return int(_DECODER_PAST * (1 + margins) * _map_bytes(sizes, work)) if work.carries_past else 0


def _map_bytes(sizes: ModelSizes, work: Work) -> float:
    """The VAE's widest map of one latent frame (four frames)."""
    return 4 * sizes.vae_dtype.itemsize * sizes.vae_channels * work.height * work.width / sizes.vae_patch**2


def _strip_share(work: Work, policy: MemoryPolicy, margin: int) -> float:
    """A strip with its margins, of a frame."""
    strips = policy.vae_strips
    return 1.0 if strips == 1 else min(1.0, 1 / strips + 2 * margin / max(work.height, work.width))


def _latents_at_once(sizes: ModelSizes, work: Work, policy: MemoryPolicy) -> int:
    """Latents that go through the VAE's largest level together."""
    if policy.vae_strips > 1:
        return 1
    rows, columns = work.height // sizes.vae_patch, work.width // sizes.vae_patch
    return fitting_latents(rows, columns, sizes.vae_channels, sizes.vae_dtype)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def resident_bytes() -> int:
    """Main memory that this process has now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


def device_budget(device: torch.device, held: int = 0) -> int | None:
    """Bytes of a device that a run may use: what is free there, and what this program holds or keeps in reserve."""
    free = free_bytes(device)
    if free is None:
        return None
    if device.type != "cuda":
        return free + held
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)(device)
    capped = int(share * torch.cuda.get_device_properties(device).total_memory) - torch.cuda.memory_reserved(device)
    return min(free, capped) + reserve + held - _DEVICE_TO_SPARE
