"""Training of the networks that judge results: the mouth reader and the sync scorer.

Both learn from the portraits of `mouth_clips`, damaged as a VAE and a video codec damage pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_s2v.evaluation.mouth_reader import (
    CROP_SIZE,
    LOCATE_SIZE,
    SHAPES,
    MouthReader,
    mouth_crops,
)
from wan_s2v.evaluation.readers import Readers
from wan_s2v.evaluation.sync import (
    LOOK_SIZE,
    SAMPLE_RATE,
    SAMPLES_BEFORE,
    WINDOW,
    SyncScorer,
    compare,
    num_samples,
    sound_of_frames,
)
from wan_s2v.training.augment import augment
from wan_s2v.training.damage import damage
from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.motion import FPS
from wan_s2v.training.mouth_clips import PATCH_SIZE, Clips, Faces, Mouths
from wan_s2v.training.visemes import CLOSED

FACES_BATCH, MOUTHS_BATCH = 192, 384  # of a step of the mouth reader
CLIPS_BATCH, SPAN = 24, 32  # of a step of the sync scorer: clips, and windows of each
PLACE_WEIGHT = 10.0
SHAPE_WEIGHTS = (3.0, 1.0, 1.0, 2.0, 1.0, 1.0)


def train_mouth_reader(
    reader: MouthReader,
    faces: Faces,
    mouths: Mouths,
    budget: Budget,
    *,
    learning_rate: float = 2e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train in place to find mouths and eyes in `faces` and to read shapes in `mouths`."""
    device = faces.images.device
    generator = torch.Generator(device).manual_seed(seed)
    loop = Loop(
        reader, muon_lr=learning_rate, adamw_lr=learning_rate, budget=budget, checkpoint=checkpoint,
        generators=(generator,), report=report,
    )  # fmt: skip
    weights = torch.tensor(SHAPE_WEIGHTS, device=device)
    patches, boxes, shapes = mouths.patches.flatten(0, 1), mouths.boxes.flatten(0, 1), mouths.shapes.flatten(0, 1)
    for _ in loop:
        images, places = _draw_faces(faces, generator)
        rows = torch.randint(len(patches), (MOUTHS_BATCH,), generator=generator, device=device)
        crops = mouth_crops(damage(_floats(patches[rows]), generator), _moved(boxes[rows], 0.07, generator), CROP_SIZE)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            located, read = reader.locate(images), reader.read(crops)
        error = F.smooth_l1_loss(read.float(), shapes[rows], beta=0.1, reduction="none")
        place = F.smooth_l1_loss(located.float(), places, beta=0.02)
        loop.step((error * weights).mean() + PLACE_WEIGHT * place)
    loop.finish()
    return loop


def _draw_faces(faces: Faces, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Damaged, zoomed and moved faces (N, 3, 96, 96), half of them mirrored, and their boxes."""
    device = faces.images.device
    rows = torch.randint(len(faces.images), (FACES_BATCH,), generator=generator, device=device)
    images, boxes = _floats(faces.images[rows]), faces.boxes[rows]
    images = damage(images, generator)
    zoom = 1.3 ** (2 * torch.rand(FACES_BATCH, generator=generator, device=device) - 1)
    shift = (torch.rand(FACES_BATCH, 2, generator=generator, device=device) - 0.5) * 0.24
    mirror = torch.where(torch.rand(FACES_BATCH, generator=generator, device=device) < 0.5, -1.0, 1.0)
    theta = torch.zeros(FACES_BATCH, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = mirror / zoom, 1 / zoom, shift
    grid = F.affine_grid(theta, [FACES_BATCH, 3, LOCATE_SIZE, LOCATE_SIZE], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    corners = (boxes.unflatten(1, (4, 2)) * 2 - 1 - shift[:, None]) * zoom[:, None, None]
    x, y = corners.unbind(-1)
    x = torch.where(mirror[:, None] < 0, -x[:, [1, 0, 3, 2]], x)
    return images, torch.stack((x, y), dim=-1).flatten(1).clamp(-1, 1) / 2 + 0.5


def _floats(images: Tensor) -> Tensor:
    """uint8 → [-1, 1]."""
    return images.float() / 127.5 - 1


def _moved(boxes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Boxes (N, 4) as an imperfect locator gives them: moved and resized by up to `share` of their width."""
    noise = (2 * torch.rand(len(boxes), 3, generator=generator, device=boxes.device) - 1) * share
    left, top, right, bottom = boxes.unbind(1)
    width = right - left
    wider = noise[:, 2] * width / 2
    across, down = noise[:, 0] * width, noise[:, 1] * width * (PATCH_SIZE[1] / PATCH_SIZE[0])
    return torch.stack((left + across - wider, top + down, right + across + wider, bottom + down), dim=1)


def train_sync_scorer(
    scorer: SyncScorer,
    mouths: Mouths,
    waveforms: Tensor,
    budget: Budget,
    *,
    learning_rate: float = 2e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train in place to tell each window of a mouth's sound from that of other times and other clips.

    Args:
        mouths: clips of T frames.
        waveforms: (n, S) int16 at 16 kHz, the sound of the same clips, on the same device; S at least T / 16 s.
    """
    device = mouths.patches.device
    generator = torch.Generator(device).manual_seed(seed)
    loop = Loop(
        scorer, muon_lr=learning_rate, adamw_lr=learning_rate, budget=budget, checkpoint=checkpoint,
        generators=(generator,), report=report,
    )  # fmt: skip
    padding = num_samples(1)
    padded = F.pad(waveforms, (padding, padding))
    for _ in loop:
        crops, sounds, speaking = _draw_spans(mouths, padded, padding, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            looks, voices = scorer.encode_looks(crops), scorer.encode_sounds(sounds)
        loop.step(contrastive_loss(looks.flatten(0, 1), voices.flatten(0, 1), speaking.flatten(), scorer.scale))
    loop.finish()
    return loop


def _draw_spans(
    mouths: Mouths, padded: Tensor, padding: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (B, T, 3, 36, 48), sounds (B, samples) and whether each of the T - 4 windows has speech."""
    clips, length = mouths.patches.shape[:2]
    device, frames = padded.device, SPAN + WINDOW - 1
    clip = torch.randint(clips, (CLIPS_BATCH, 1), generator=generator, device=device)
    start = torch.randint(length - frames + 1, (CLIPS_BATCH, 1), generator=generator, device=device)
    time = start + torch.arange(frames, device=device)
    patches, boxes = mouths.patches[clip, time].flatten(0, 1), mouths.boxes[clip, time].flatten(0, 1)
    patches = damage(_floats(patches), generator, frames_per_clip=frames)
    # The locator errs in the same way for all frames of a person, and a little from frame to frame.
    bias = _moved(boxes[::frames], 0.08, generator) - boxes[::frames]
    boxes = _moved(boxes + bias.repeat_interleave(frames, 0), 0.015, generator)
    crops = mouth_crops(patches, boxes, LOOK_SIZE).unflatten(0, (CLIPS_BATCH, frames))
    first = padding + start * (SAMPLE_RATE // FPS) - SAMPLES_BEFORE
    sounds = padded[clip, first + torch.arange(num_samples(frames), device=device)].float() / 32767
    centres = time[:, WINDOW // 2 : -(WINDOW // 2)]
    return crops, augment(sounds, generator), mouths.speaking[clip, centres]


def contrastive_loss(looks: Tensor, sounds: Tensor, speaking: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of finding a row's partner among all rows, in both directions.

    Args:
        looks, sounds: (N, D) unit vectors; rows of equal index belong together.
        speaking: (N,) rows that are asked for; silence looks and sounds alike everywhere.
        scale: logarithm of the factor before the softmax.
    """
    logits = looks @ sounds.T * scale.clamp(max=4.0).exp()
    partners = torch.arange(len(looks), device=looks.device)
    loss = F.cross_entropy(logits, partners, reduction="none") + F.cross_entropy(logits.T, partners, reduction="none")
    weights = speaking.float()
    return (loss * weights).sum() / (2 * weights.sum().clamp(min=1))


@torch.no_grad()
def evaluate_mouth_reader(reader: MouthReader, clips: Clips, *, damage_seed: int | None = None) -> dict[str, float]:
    """How well shapes and boxes are read from whole frames.

    Args:
        damage_seed: damage the frames first, as in training.
    Returns: Pearson correlation of each shape over all frames; `closed found`, the share of pressed lips (truth above
        0.9) read above 0.5, and `closed wrongly`, that of others (truth below 0.1); mean distance of the boxes' edges
        from the truth in widths of the mouth's box.
    """
    read, edges = [], []
    for index, frames in enumerate(clips.frames):
        images = _floats(frames)
        if damage_seed is not None:
            generator = torch.Generator(images.device).manual_seed(damage_seed + index)
            images = damage(images, generator, frames_per_clip=len(images))
        reading = reader(images)
        read.append(reading.shapes)
        boxes = clips.boxes[index]
        error = (torch.cat((reading.mouths, reading.eyes), dim=1) - boxes).abs()
        edges.append(error / (boxes[:, 2] - boxes[:, 0])[:, None])
    made, truth, error = torch.cat(read), clips.shapes.flatten(0, 1), torch.cat(edges)
    figures = {
        name: float(torch.corrcoef(torch.stack((made[:, i], truth[:, i])))[0, 1]) for i, name in enumerate(SHAPES)
    }
    pressed = made[:, CLOSED] > 0.5
    figures["closed found"] = float(pressed[truth[:, CLOSED] > 0.9].float().mean())
    figures["closed wrongly"] = float(pressed[truth[:, CLOSED] < 0.1].float().mean())
    figures["mouth box error"], figures["eye box error"] = float(error[:, :4].mean()), float(error[:, 4:].mean())
    return figures


@torch.no_grad()
def evaluate_sync_scorer(readers: Readers, clips: Clips, waveforms: Tensor) -> dict[str, float]:
    """Offsets and confidences of clips with their own sound, with it shifted, and with that of others.

    Args:
        waveforms: (n, S) int16 at 16 kHz.
    Returns: shares of clips whose offset is found exactly and within a frame, for aligned sound and for pictures that
        lead by 3 and lag by 7 frames; mean confidences of aligned, shifted and foreign sound.
    """
    looks, sounds = [], []
    for frames, waveform in zip(clips.frames, waveforms, strict=True):
        images = _floats(frames)
        crops = mouth_crops(images, readers.mouth(images).mouths, LOOK_SIZE)
        looks.append(readers.sync.encode_looks(crops[None])[0].cpu().numpy())
        sound = sound_of_frames(waveform.cpu().numpy().astype("float32") / 32767, 0, len(frames))
        sounds.append(readers.sync.encode_sounds(torch.from_numpy(sound)[None].to(images.device))[0].cpu().numpy())
    pairs = list(zip(looks, sounds, strict=True))
    figures: dict[str, float] = {}
    for name, offset, results in (
        ("aligned", 0, [compare(a, b) for a, b in pairs]),
        ("leads by 3", 3, [compare(a[3:], b[:-3]) for a, b in pairs]),
        ("lags by 7", -7, [compare(a[:-7], b[7:]) for a, b in pairs]),
        ("foreign", 0, [compare(a, b) for a, b in zip(looks, sounds[1:] + sounds[:1], strict=True)]),
    ):
        known = [result for result in results if result is not None]
        errors = torch.tensor([abs(result.offset - offset) for result in known])
        figures[f"{name}: exact"] = float((errors == 0).float().mean())
        figures[f"{name}: within 1"] = float((errors <= 1).float().mean())
        figures[f"{name}: confidence"] = float(torch.tensor([result.confidence for result in known]).mean())
    return figures
