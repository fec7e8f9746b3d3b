"""Made pictures for the networks that judge results: faces, the mouths of speaking people, and whole clips.

Of most frames only the pixels around the mouth are drawn, exactly as they are in a frame of 256x256, which is seven
times cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_s2v.evaluation.mouth_reader import FRAME_SIZE, OPEN, mouth_region
from wan_s2v.training.clothes import draw_body
from wan_s2v.training.corpus import CURVE_HZ, Corpus, curves_at_video_rate
from wan_s2v.training.faces import draw_beard, draw_folds, draw_nose, draw_skin, face_outline
from wan_s2v.training.hair import Hair, draw_cover, draw_hair, draw_hair_behind
from wan_s2v.training.identities import Identities, sample_identities
from wan_s2v.training.motion import FPS, sample_controls, sample_motion
from wan_s2v.training.mouths import draw_mouth
from wan_s2v.training.pool import frame_batches
from wan_s2v.training.portraits import eye_box, mouth_box, render
from wan_s2v.training.poses import NUM_MOUTH_CHANNELS, look, unpack_motion
from wan_s2v.training.shapes import Window, place_window
from wan_s2v.training.visemes import CLOSED, TEETH, TONGUE

PATCH_SIZE = (88, 112)  # pixels of a frame of 256x256: the largest region that is read, with room to move
FACE_SIZE = 128
_RENDER_PIXELS = 192 * FRAME_SIZE**2  # drawn at once: about 3 GB
_SPEAKING = 0.05  # energy from which a frame takes part in the comparison of lips and sound


@dataclass(frozen=True)
class Faces:
    """Single frames: images (N, 3, S, S) uint8, boxes (N, 8) of mouth and eyes in 0…1; on the training's device."""

    images: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Mouths:
    """Clips of mouths, on the training's device.

    Args:
        patches: (n, T, 3, 88, 112) uint8. boxes: (n, T, 4) of the mouths in 0…1 of the patches.
        shapes: (n, T, 6) what can be seen, as the mouth reader gives it. speaking: (n, T) whether there is sound.
    """

    patches: Tensor
    boxes: Tensor
    shapes: Tensor
    speaking: Tensor

    def __getitem__(self, clips: slice) -> Mouths:
        return Mouths(self.patches[clips], self.boxes[clips], self.shapes[clips], self.speaking[clips])


@dataclass(frozen=True)
class Clips:
    """Whole frames (n, T, 3, 256, 256) uint8 for evaluation, with shapes (n, T, 6) and boxes (n, T, 8)."""

    frames: Tensor
    shapes: Tensor
    boxes: Tensor


def speech_curves(corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Mouth shapes (n, T, 6) and energy (n, T) of a corpus at 16 fps."""
    num_frames = corpus.mouth.shape[1] * FPS // CURVE_HZ
    mouth, energy = curves_at_video_rate(corpus, FPS, num_frames)
    return torch.from_numpy(mouth), torch.from_numpy(energy)


def visible_shapes(mouth: Tensor) -> Tensor:
    """What can be seen of (…, 6) mouth shapes: pressed lips hide the opening, shut ones teeth and tongue."""
    shapes = mouth.clone()
    shapes[..., OPEN] = mouth[..., OPEN] * (1 - mouth[..., CLOSED])
    parted = (shapes[..., OPEN] / 0.06).clamp(max=1)
    for channel in (TEETH, TONGUE):
        shapes[..., channel] = mouth[..., channel] * parted
    return shapes


@torch.no_grad()
def render_faces(mouth: Tensor, energy: Tensor, seed: int, device: torch.device, *, per_person: int = 4) -> Faces:
    """Random frames of the clips, each clip another person.

    Args:
        mouth, energy: (n, T, 6) and (n, T) at 16 fps.
    """
    people, motion = _people(mouth, energy, seed)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(motion.shape[1], (len(motion), per_person), generator=generator)
    picked = motion.gather(1, picks[..., None].expand(-1, -1, motion.shape[2]))
    images, boxes = [], []
    for who, how in frame_batches(people, picked, _RENDER_PIXELS // FACE_SIZE**2, device):
        images.append((render(who, how, FACE_SIZE, FACE_SIZE) * 255 + 0.5).to(torch.uint8))
        boxes.append(torch.cat((mouth_box(who, how), eye_box(who, how)), dim=1))
    return Faces(torch.cat(images), torch.cat(boxes))


@torch.no_grad()
def render_mouths(mouth: Tensor, energy: Tensor, seed: int, device: torch.device) -> Mouths:
    """The mouths of clips, each clip another person; arguments as for `render_faces`."""
    people, motion = _people(mouth, energy, seed)
    count, num_frames = motion.shape[:2]
    patches = torch.empty(count * num_frames, 3, *PATCH_SIZE, dtype=torch.uint8, device=device)
    boxes, first = [], 0
    for who, how in frame_batches(people, motion, _RENDER_PIXELS // (PATCH_SIZE[0] * PATCH_SIZE[1]), device):
        patch, box = render_patches(who, how)
        patches[first : first + len(patch)] = (patch * 255 + 0.5).to(torch.uint8)
        boxes.append(box)
        first += len(patch)
    shapes = visible_shapes(motion[..., :NUM_MOUTH_CHANNELS]).to(device)
    return Mouths(
        patches.unflatten(0, (count, num_frames)),
        torch.cat(boxes).unflatten(0, (count, num_frames)),
        shapes,
        (energy > _SPEAKING).to(device),
    )


@torch.no_grad()
def render_clips(mouth: Tensor, energy: Tensor, seed: int, device: torch.device) -> Clips:
    """Whole frames of clips, each clip another person; arguments as for `render_faces`."""
    people, motion = _people(mouth, energy, seed)
    frames, boxes = [], []
    for who, how in frame_batches(people, motion, _RENDER_PIXELS // FRAME_SIZE**2, device):
        frames.append((render(who, how, FRAME_SIZE, FRAME_SIZE) * 255 + 0.5).to(torch.uint8))
        boxes.append(torch.cat((mouth_box(who, how), eye_box(who, how)), dim=1))
    shape = motion.shape[:2]
    shapes = visible_shapes(motion[..., :NUM_MOUTH_CHANNELS]).to(device)
    return Clips(torch.cat(frames).unflatten(0, shape), shapes, torch.cat(boxes).unflatten(0, shape))


def _people(mouth: Tensor, energy: Tensor, seed: int) -> tuple[Identities, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    people = sample_identities(len(mouth), generator)
    return people, sample_motion(mouth, energy, sample_controls(len(mouth), generator), generator)


@torch.no_grad()
def render_patches(identities: Identities, motion: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels around the mouths that `portraits.render` draws at 256x256, before a plain background.

    Returns: (N, 3, 88, 112) in 0…1, and the boxes (N, 4) of the mouths in 0…1 of these.
    """
    boxes = mouth_box(identities, motion)
    window = _place_patch(boxes)
    who, pose = identities.per_pixel(), unpack_motion(motion)
    view = look(window.x, window.y, 2 / FRAME_SIZE, who, pose)
    outline, hair = face_outline(view.head_x, view.head_y, who, pose), Hair(view, who, pose)
    image = who.back.expand(-1, -1, *PATCH_SIZE)
    image = draw_hair_behind(image, view, hair, who, pose)
    image = draw_body(image, view, who, face_outline(view.head_x, view.head_y - 0.06, who, pose))
    image = draw_beard(draw_skin(image, view, who, outline), view, who, pose, outline)
    image = draw_folds(draw_nose(image, view, who, pose), view, who, pose)
    image = draw_mouth(image, view, who, pose)
    image = draw_cover(draw_hair(image, view, hair, who, outline), view, who, outline)
    corner = window.indices[:, 0, :1]
    left_top = torch.cat((corner % FRAME_SIZE, corner // FRAME_SIZE), dim=1).repeat(1, 2)
    size = boxes.new_tensor([PATCH_SIZE[1], PATCH_SIZE[0]]).repeat(2)
    return image.clamp(0, 1), (boxes * FRAME_SIZE - left_top) / size


def _place_patch(boxes: Tensor) -> Window:
    """The windows of 88x112 pixels whose middle is that of the region that is read."""
    x, y, _ = mouth_region(boxes * FRAME_SIZE)
    half = ((PATCH_SIZE[1] - 2) / FRAME_SIZE, (PATCH_SIZE[0] - 2) / FRAME_SIZE)  # `place_window` adds two pixels
    return place_window(x * (2 / FRAME_SIZE) - 1, y * (2 / FRAME_SIZE) - 1, *half, (FRAME_SIZE, FRAME_SIZE))
