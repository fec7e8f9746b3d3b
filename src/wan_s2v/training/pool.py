"""Rendered clips kept on the device in 8 bits, from which training draws crops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_s2v.training.identities import Identities, sample_identities
from wan_s2v.training.motion import sample_controls, sample_motion
from wan_s2v.training.portraits import eye_box, mouth_box, render

EYE_WEIGHT, MOUTH_WEIGHT = 2.0, 8.0  # added to 1 in the loss
RENDER_BATCH = 192  # frames drawn at once: about 3 GB at 256 pixels (16 MiB a frame)


@dataclass(frozen=True)
class Pool:
    """Clips with the places that matter most.

    Args:
        frames: (N, T, 3, S, S) uint8, on the training's device.
        mouths, eyes: (N, T, 4) boxes left, top, right, bottom in 0…1, on the CPU.
    """

    frames: Tensor
    mouths: Tensor
    eyes: Tensor

    def draw(self, batch: int, num_frames: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random crops.

        Returns: (batch, 3, num_frames, size, size) in [-1, 1] and loss weights (batch, 1, num_frames, size, size):
            1, more in the eyes and most in the mouth.
        """
        clips, length, _, full, _ = self.frames.shape
        videos, weights = [], []
        for _ in range(batch):
            clip, start = _randint(clips, generator), _randint(length - num_frames + 1, generator)
            span = slice(start, start + num_frames)
            top, left = self._corner(clip, start, full, size, generator)
            rows, columns = slice(top, top + size), slice(left, left + size)
            frames, emphasis = self.frames[clip, span, :, rows, columns], self._weights(clip, span, rows, columns)
            mirrored = _randint(2, generator) == 1
            videos.append(frames.flip(-1) if mirrored else frames)
            weights.append(emphasis.flip(-1) if mirrored else emphasis)
        video = torch.stack(videos).transpose(1, 2).float() / 127.5 - 1
        return video, torch.stack(weights)[:, None]

    def _corner(self, clip: int, start: int, full: int, size: int, generator: torch.Generator) -> tuple[int, int]:
        """Top left corner; two of three crops hold the mouth."""
        if size == full:
            return 0, 0
        if _randint(3, generator) == 0:
            return _randint(full - size + 1, generator), _randint(full - size + 1, generator)
        left, top, right, bottom = (self.mouths[clip, start] * full).tolist()
        jitter = ((torch.rand(2, generator=generator) - 0.5) * size * 0.7).tolist()
        middle = ((top + bottom) / 2 + jitter[0], (left + right) / 2 + jitter[1])
        corner = [min(max(round(m - size / 2), 0), full - size) for m in middle]
        return corner[0], corner[1]

    def _weights(self, clip: int, span: slice, rows: slice, columns: slice) -> Tensor:
        """(T, rows, columns) on the frames' device; masks are made on the CPU so that the device never waits."""
        full = self.frames.shape[-1]
        centre = (torch.arange(full) + 0.5) / full
        weights = torch.ones((), device=self.frames.device)
        for boxes, extra in ((self.eyes, EYE_WEIGHT), (self.mouths, MOUTH_WEIGHT)):
            left, top, right, bottom = boxes[clip, span, :, None].unbind(1)
            down = ((centre > top) & (centre < bottom))[:, rows].float() * extra
            across = ((centre > left) & (centre < right))[:, columns].float()
            weights = weights + down.to(self.frames.device)[:, :, None] * across.to(self.frames.device)[:, None]
        return weights


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


@torch.no_grad()
def render_pool(num_clips: int, num_frames: int, size: int, seed: int, device: torch.device) -> Pool:
    """Clips of as many people, each moving to a random babble of mouth shapes.

    Args:
        seed: people and motion follow from it; held-out pools use other seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    people = sample_identities(num_clips, generator)
    mouth, energy = random_babble(num_clips, num_frames, generator)
    motion = sample_motion(mouth, energy, sample_controls(num_clips, generator), generator)
    frames = torch.empty(num_clips, num_frames, 3, size, size, dtype=torch.uint8, device=device)
    flat, boxes, first = frames.view(-1, 3, size, size), [], 0
    for who, how in frame_batches(people, motion, RENDER_BATCH, device):
        flat[first : first + len(how)] = (render(who, how, size, size) * 255 + 0.5).to(torch.uint8)
        boxes.append(torch.cat((mouth_box(who, how), eye_box(who, how)), dim=1))
        first += len(how)
    mouths, eyes = torch.cat(boxes).cpu().view(num_clips, num_frames, 8).split(4, dim=-1)
    return Pool(frames, mouths, eyes)


def frame_batches(
    people: Identities, motion: Tensor, at_once: int, device: torch.device
) -> Iterator[tuple[Identities, Tensor]]:
    """All frames of clips, in order, in parts that can be drawn at once: people and motion (frames, channels).

    Args:
        people: n, one a clip.
        motion: (n, T, channels).
    """
    index = torch.arange(len(people)).repeat_interleave(motion.shape[1])
    for part, rows in zip(index.split(at_once), motion.flatten(0, 1).split(at_once), strict=True):
        yield people[part].to(device), rows.to(device)


def random_babble(num_clips: int, num_frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mouth shapes (n, T, 6) and energy (n, T) that cover what speech does, faster than speaking: for the VAE alone."""
    steps = num_frames // 2 + 3
    open_, width, round_, teeth, tongue, closing, talking = torch.rand(7, num_clips, 1, steps, generator=generator)
    shape = torch.cat(
        (
            open_**1.5,
            (width * 2 - 1) * (round_ < 0.7),
            (round_ - 0.7).clamp(min=0) / 0.3,
            (closing < 0.15).float(),
            (teeth - 0.5).clamp(min=0) * 2,
            (tongue - 0.7).clamp(min=0) / 0.3,
        ),
        dim=1,
    )
    size = 2 * steps
    mouth = torch.nn.functional.interpolate(shape, size=size, mode="linear", align_corners=False)[
        ..., 1 : num_frames + 1
    ]
    pauses = torch.nn.functional.interpolate((talking > 0.12).float(), size=size, mode="nearest")[
        ..., 1 : num_frames + 1
    ]
    return mouth.transpose(1, 2), pauses[:, 0] * 0.6
