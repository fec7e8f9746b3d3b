"""Bringing weights to the device that computes, and away again, as a `MemoryPolicy` says.

Weights are never copied back: what they were in main memory is kept, or still mapped from its file, and put back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from wan_s2v.models.backbone import Backbone
from wan_s2v.models.layers import Attention, FeedForward
from wan_s2v.runtime.memory import SLOTS, MemoryPolicy, free_bytes

_ALIGNMENT: Final = 256  # bytes; what kernels like to begin at
_PAGE: Final = mmap.PAGESIZE
_RAM_TO_SPARE: Final = 4 << 30  # bytes of main memory that are left to others


class Placement:
    """The components of a pipeline on their way to the device and back, for one run.

    Args:
        components: by name; those that are None are left out.
        device: that computes.
    """

    def __init__(
        self, components: Mapping[str, nn.Module | None], device: torch.device, policy: MemoryPolicy | None = None
    ) -> None:
        self.device, self.policy = device, policy or MemoryPolicy()
        self._modules = {name: module for name, module in components.items() if module is not None}
        self._present: dict[str, _Visit] = {}
        self._streams: dict[str, BlockStream] = {}

    def __enter__(self) -> Placement:
        self._make_room()
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()
        for module in self._modules.values():
            _split_tokens(module, 1)
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    def use(self, name: str) -> Any:
        """The component, on the device; those that it does not share the device with have left."""
        module = self._modules[name]
        leaving = [other for other in self._present if not self.policy.stay_together(name, other)]
        for other in leaving:
            self._present.pop(other).end()
        if leaving and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.policy.offload == "none":
            if next(module.parameters()).device != self.device:
                module.to(self.device)
        elif name not in self._present:
            self._present[name] = self._bring(name, module)
        _split_tokens(module, self.policy.token_parts)
        return module

    def change(self, policy: MemoryPolicy) -> None:
        """Go on under another policy; everything is brought anew."""
        self.clear()
        self.policy = policy
        self._make_room()

    def clear(self) -> None:
        """Have everything that came leave again."""
        for visit in self._present.values():
            visit.end()
        self._present.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Have what lives on the device wait in main memory, where parts come only to work."""
        if self.policy.offload != "none" and self.device.type != "cpu":
            for module in self._modules.values():
                module.to("cpu")
            torch.cuda.empty_cache()

    def _bring(self, name: str, module: nn.Module) -> _Visit:
        blocks = _blocks(module)
        if self.policy.offload != "block" or len(blocks) <= SLOTS:
            return _Visit(module, self.device)
        resident = min(self.policy.resident_blocks, len(blocks) - SLOTS) if name.startswith("transformer") else 0
        streamed = _spread(blocks, len(blocks) - resident)
        stream = self._streams.get(name)
        if stream is None or stream.blocks != streamed:
            if stream is not None:
                stream.close()
            stream = self._streams[name] = BlockStream(streamed, self.device)
        return _Visit(module, self.device, stream)


def _split_tokens(module: nn.Module, num_parts: int) -> None:
    """Have tokens go through a transformer's attentions and feed-forwards in so many parts."""
    for layer in module.modules():
        if isinstance(layer, Attention | FeedForward):
            layer.num_parts = num_parts


class _Visit:
    """A module's stay on the device, its streamed blocks excepted."""

    def __init__(self, module: nn.Module, device: torch.device, stream: BlockStream | None = None) -> None:
        self._module, self._stream = module, stream
        self._home: list[tuple[_Place, Tensor]] = []
        self._hooks: list[Any] = []
        try:
            absent = {id(place.owner) for block in stream.blocks for place in _places(block)} if stream else set()
            for place in _places(module):
                if id(place.owner) not in absent:
                    self._home.append((place, place.tensor))
                    place.put(place.tensor.to(device))
            if stream is not None:
                stream.open()
                self._attach(stream)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._stream is not None:
            self._stream.pause()
            if isinstance(self._module, Backbone):
                self._module.blocks_in_turn = None
        for place, tensor in self._home:
            place.put(tensor)
        self._home.clear()

    def _attach(self, stream: BlockStream) -> None:
        if isinstance(self._module, Backbone):
            self._module.blocks_in_turn = stream.in_turn
            return
        for block in stream.blocks:
            self._hooks.append(block.register_forward_pre_hook(lambda module, _args: stream.bring(module)))
            self._hooks.append(block.register_forward_hook(lambda module, _args, _result: stream.release(module)))


@dataclass(frozen=True)
class _Place:
    """Where a module keeps a parameter or a buffer."""

    owner: nn.Module
    name: str
    is_parameter: bool

    @property
    def tensor(self) -> Tensor:
        found = self.owner._parameters[self.name] if self.is_parameter else self.owner._buffers[self.name]
        assert found is not None
        return found.data

    def put(self, tensor: Tensor) -> None:
        if self.is_parameter:
            parameter = self.owner._parameters[self.name]
            assert parameter is not None
            parameter.data = tensor
        else:
            self.owner._buffers[self.name] = tensor


def _places(module: nn.Module) -> list[_Place]:
    """Every parameter and buffer once; tied parameters at their first place."""
    found, seen = [], set()
    for owner in module.modules():
        for is_parameter, tensors in ((True, owner._parameters), (False, owner._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found.append(_Place(owner, name, is_parameter))
    return found


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer or of a umT5 encoder, in order; [] of anything else."""
    for path in ("blocks", "encoder.block"):
        try:
            return list(module.get_submodule(path).children())
        except AttributeError:
            continue
    return []


def _spread(blocks: list[nn.Module], count: int) -> list[nn.Module]:
    """`count` of the blocks, evenly spread, so that each copy has as much work to hide behind."""
    return [block for i, block in enumerate(blocks) if (i + 1) * count // len(blocks) > i * count // len(blocks)]


class BlockStream:
    """Blocks that arrive on the device one ahead of the work, and are forgotten there when theirs is done.

    Each is one contiguous copy. While a block works, the next one is copied into the other of two places; after the
    last one that is the first one, for the next pass.

    Args:
        blocks: in the order in which they work, every time.
        device: that computes.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device) -> None:
        self.blocks, self._device = blocks, device
        self._places = [_places(block) for block in blocks]
        self._home = [[place.tensor for place in places] for places in self._places]
        self._position = {id(block): index for index, block in enumerate(blocks)}
        self._host: list[Tensor] = []
        self._pinned: list[int] = []
        self._slots: list[_Slot] = []
        self._current = 0  # slot of the block that works, or worked last
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def open(self) -> None:
        """Make room on the device, and page-locked copies in main memory if it has the room."""
        sizes = [sum(_padded(place.tensor) for place in places) for places in self._places]
        if not self._host:
            self._gather(sizes)
        if not self._slots:
            self._slots = [_Slot(torch.empty(max(sizes), dtype=torch.uint8, device=self._device)) for _ in range(SLOTS)]

    def in_turn(self, blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """The blocks, each on the device until the next one is asked for."""
        for block in blocks:
            self.bring(block)
            try:
                yield block
            finally:
                self.release(block)

    def bring(self, block: nn.Module) -> None:
        """Have the block on the device, and the next one on its way; blocks that are not streamed are there."""
        position = self._position.get(id(block))
        if position is None:
            return
        if self._slots[self._current].holds != position:
            self._current = 1 - self._current
            if self._slots[self._current].holds != position:
                self._copy(position, self._current)
        slot = self._slots[self._current]
        if slot.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.arrived)
        for place, tensor in zip(self._places[position], slot.tensors, strict=True):
            place.put(tensor)
        following = (position + 1) % len(self.blocks)
        if self._slots[1 - self._current].holds != following:
            self._copy(following, 1 - self._current)

    def release(self, block: nn.Module) -> None:
        """Give the block's place on the device free for a later one, once the work given out so far is done."""
        position = self._position.get(id(block))
        if position is None:
            return
        if self._copies is not None:
            event = self._slots[self._current].free = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        self._send_home(position)

    def pause(self) -> None:
        """Leave the device; `open` begins again."""
        if self._copies is not None:
            self._copies.synchronize()
        for position in range(len(self.blocks)):
            self._send_home(position)
        self._slots = []

    def close(self) -> None:
        """Leave the device and unlock main memory; the blocks keep what they have there."""
        self.pause()
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._pinned.clear()

    def _gather(self, sizes: list[int]) -> None:
        """Put each block's tensors side by side, if there is memory for it; otherwise they stay where they are."""
        free = free_bytes(torch.device("cpu"))
        if free is not None and free < sum(sizes) + _RAM_TO_SPARE:
            return
        for places, home, size in zip(self._places, self._home, sizes, strict=True):
            memory = torch.empty(size + _PAGE, dtype=torch.uint8)
            begin = -memory.data_ptr() % _PAGE  # pages are what can be locked
            flat = memory[begin : begin + size]
            for index, (place, view) in enumerate(zip(places, _views(flat, home), strict=True)):
                view.copy_(home[index])
                home[index] = view
                place.put(view)
            self._host.append(flat)
            if self._copies is not None and _lock(flat):
                self._pinned.append(flat.data_ptr())

    def _copy(self, position: int, index: int) -> None:
        """Fill a slot with a block, behind the work that still needs what the slot holds."""
        slot = self._slots[index]
        slot.tensors, slot.holds = _views(slot.memory, self._home[position]), position
        pairs = list(zip(slot.tensors, self._home[position], strict=True))
        if self._host:
            flat = self._host[position]
            pairs = [(slot.memory[: len(flat)], flat)]
        if self._copies is None:
            _copy_all(pairs)
            return
        if slot.free is not None:
            self._copies.wait_event(slot.free)
        else:  # memory that was just allocated: others on the computing stream may have had it before
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            _copy_all(pairs)
        slot.arrived = torch.cuda.Event()
        slot.arrived.record(self._copies)

    def _send_home(self, position: int) -> None:
        for place, tensor in zip(self._places[position], self._home[position], strict=True):
            place.put(tensor)


@dataclass
class _Slot:
    """A place on the device for one block.

    Args:
        holds: position of the block that is there or arriving.
        tensors: those of the block, in this memory.
        arrived, free: CUDA events: the copy is done; the work with it is.
    """

    memory: Tensor
    holds: int | None = None
    tensors: Sequence[Tensor] = ()
    arrived: Any = None
    free: Any = None


def _padded(tensor: Tensor) -> int:
    """Bytes of a tensor among others."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of these shapes and dtypes, one after the other in (bytes,) uint8."""
    views, offset = [], 0
    for tensor in like:
        views.append(memory[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        offset += _padded(tensor)
    return views


def _copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)


def _lock(memory: Tensor) -> bool:
    """Lock memory into RAM, from where copies are fast and need no wait; False where the system forbids it."""
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0
