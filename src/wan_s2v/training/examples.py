"""Clips as the transformer is trained on them: rendered, encoded and described once, then kept on the device.

Time within an example: the renderer makes frames -4, -3, … of the sound. Frame -4 is the picture before the video, so
latent f covers sound frames 4f - 3 … 4f, and a window that begins at latent 0 is a first clip under timing "aligned".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import Wav2Vec2Model

from wan_s2v.audio_features import aligned_feature_indices, num_audio_features
from wan_s2v.clips import FRAMES_PER_LATENT, WARM_UP_FRAMES
from wan_s2v.latents import latent_statistics
from wan_s2v.prompt import NEGATIVE_PROMPT, clean_prompt
from wan_s2v.training.augment import augment
from wan_s2v.training.corpus import Corpus, curves_at_video_rate
from wan_s2v.training.free_prompts import describe_freely
from wan_s2v.training.identities import Identities, sample_identities
from wan_s2v.training.motion import FPS, Controls, reference_motion, sample_controls, sample_motion
from wan_s2v.training.pool import frame_batches
from wan_s2v.training.portraits import draw_pose, eye_box, mouth_box, render
from wan_s2v.training.prompts import Language, describe, identity_facts
from wan_s2v.training.speech_encoder import encode_states, normalise
from wan_s2v.training.vae import decode_sequence, encode_sequence

MOTION_FRAMES = 9  # the embedded model's memory: one image latent and two of four frames
MOTION_LATENTS = 3
CLIP_LATENTS = 22  # of an example; with the picture before, 89 frames
USUAL_WINDOW, LONGEST_WINDOW = 12, 20  # latents of the clips that are made by default, and at most
NUM_STARTS = 4  # windows of an example for which the frames before are encoded; the first fits the longest clip
REFERENCE_HISTORY = 6  # frames of history that show the reference where a video starts from it, as officially
MOUTH_WEIGHT, EYE_WEIGHT = 2.5, 0.8  # added to 1 in the loss
_FIRST_FRAME = -WARM_UP_FRAMES - 1
_POSE_SHARE, _AUGMENTED_SHARE, _ROUND_TRIP_SHARE = 0.25, 0.5, 0.5
_RENDER_BATCH, _CLIPS_AT_ONCE = 178, 4


@dataclass(frozen=True)
class Encoders:
    """The trained models that turn a clip into what the transformer sees."""

    vae: AutoencoderKLWan
    speech: Wav2Vec2Model
    tokenizer: Any
    text: torch.nn.Module
    text_len: int


@dataclass(frozen=True)
class Examples:
    """N clips; all tensors on one device, latents normalised.

    Args:
        latents: (N, C, F, h, w) of the video.
        references: (N, C, 1, h, w) of the portrait.
        openings: (N, C, 3, h, w), the history of a video that starts from the portrait.
        motion: (N, S, C, 3, h, w), the history of the windows that begin at `starts` (N, S); the first leaves room for
            the longest window, all of them for the usual one.
        audio: (N, layers, C_audio, 4F) speech features of every frame.
        pose: (N, C, F, h, w), zero for most clips.
        prompts: (N, P, L, C_text), padded with zeros.
        plain: (N,) whether the clip is what a user gets who writes no prompt.
        weights: (N, F, h, w) of the loss.
        empty, negative: (L, C_text) embeddings of no prompt and of the negative prompt.
    """

    latents: Tensor
    references: Tensor
    openings: Tensor
    motion: Tensor
    starts: Tensor
    audio: Tensor
    pose: Tensor
    prompts: Tensor
    plain: Tensor
    weights: Tensor
    empty: Tensor
    negative: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join_examples(parts: list[Examples]) -> Examples:
    """All clips of several sets that were made with the same encoders."""
    fixed = ("empty", "negative")
    tensors = {
        name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors() if name not in fixed
    }
    return Examples(**tensors, empty=parts[0].empty, negative=parts[0].negative)


@torch.no_grad()
def make_examples(corpus: Corpus, encoders: Encoders, *, size: int = 256, seed: int = 0) -> Examples:
    """One example for every utterance of a corpus, each with another person, on the VAE's device.

    Args:
        corpus: clips of at least (4 · CLIP_LATENTS - 3) / 16 s.
        size: side of the square frames.
    """
    device = encoders.vae.device
    generator = torch.Generator().manual_seed(seed)
    count = len(corpus.waveforms)
    people = sample_identities(count, generator)
    controls = sample_controls(count, generator)
    mouth, energy = mouth_and_energy(corpus)
    motion = sample_motion(mouth, energy, controls, generator)
    parts = [
        _encode_clips(encoders, people[index].to(device), motion[index].to(device), size, generator)
        for index in torch.arange(count).split(_CLIPS_AT_ONCE)
    ]
    joined = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    noises = torch.Generator(device).manual_seed(seed)
    audio = [_audio_features(encoders.speech, part, noises) for part in _waveforms(corpus, device)]
    prompts = [_describe(people, row, controls[row], generator) for row in range(count)]
    fixed = encode_prompts(["", NEGATIVE_PROMPT], encoders)
    plain = [c.camera == "still" and c.head in ("still", "lively") for c in controls]
    return Examples(
        **joined,
        audio=torch.cat(audio),
        prompts=encode_prompts([text for texts in prompts for text in texts], encoders).unflatten(0, (count, -1)),
        plain=torch.tensor(plain, device=device),
        empty=fixed[0],
        negative=fixed[1],
    )


def mouth_and_energy(corpus: Corpus) -> tuple[Tensor, Tensor]:
    """(N, T, 6) and (N, T) at 16 fps of the frames -4, -3, … of each utterance; silence before the sound."""
    num_frames = 1 + FRAMES_PER_LATENT * CLIP_LATENTS
    mouth, energy = curves_at_video_rate(corpus, FPS, num_frames, _FIRST_FRAME)
    return torch.from_numpy(mouth), torch.from_numpy(energy)


def render_clips(people: Identities, motion: Tensor, size: int, *, poses: bool = False) -> Tensor:
    """(n, T, 3, size, size) in [-1, 1] of n people moving as (n, T, channels); skeletons instead with `poses`."""
    draw = draw_pose if poses else render
    batches = frame_batches(people, motion, _RENDER_BATCH, motion.device)
    return (torch.cat([draw(who, how, size, size) for who, how in batches]) * 2 - 1).unflatten(0, motion.shape[:2])


def _encode_clips(
    encoders: Encoders, people: Identities, motion: Tensor, size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Everything that comes from the pictures of a few clips."""
    vae, count = encoders.vae, len(people)
    frames = render_clips(people, motion, size)
    latents = encode(vae, frames)
    portrait = render_clips(people, reference_motion(count)[:, None].to(motion.device), size)
    history = torch.zeros_like(frames[:, :MOTION_FRAMES])
    history[:, -REFERENCE_HISTORY:] = portrait
    starts = _window_starts(count, generator)
    seen = frames
    if torch.rand((), generator=generator) < _ROUND_TRIP_SHARE:  # what a later clip sees has been through the VAE
        seen = decode(vae, latents)
    before = torch.stack([_frames_before(clip, row) for clip, row in zip(seen, starts, strict=True)])
    pose = torch.zeros_like(latents[:, :, 1:])
    if torch.rand((), generator=generator) < _POSE_SHARE:
        skeletons = render_clips(people, motion[:, 1:], size, poses=True)
        pose = encode(vae, torch.cat((skeletons[:, :1], skeletons), dim=1))[:, :, 1:]
    motion_latents = encode(vae, before.flatten(0, 1)).unflatten(0, (count, NUM_STARTS))
    dtype = torch.bfloat16
    return {
        "latents": latents[:, :, 1:].to(dtype),
        "references": encode(vae, portrait).to(dtype),
        "openings": encode(vae, history).to(dtype),
        "motion": motion_latents.to(dtype),
        "starts": torch.tensor(starts, device=motion.device),
        "pose": pose.to(dtype),
        "weights": loss_weights(people, motion[:, 1:], latents.shape[-1]).to(dtype),
    }


def _window_starts(count: int, generator: torch.Generator) -> list[list[int]]:
    """Latents at which windows begin that have a history."""
    first = MOTION_LATENTS - 1
    early = torch.randint(first, CLIP_LATENTS - LONGEST_WINDOW + 1, (count, 1), generator=generator)
    late = torch.randint(first, CLIP_LATENTS - USUAL_WINDOW + 1, (count, NUM_STARTS - 1), generator=generator)
    rows: list[list[int]] = torch.cat((early, late), dim=1).tolist()
    return rows


def _frames_before(clip: Tensor, starts: list[int]) -> Tensor:
    """(S, 9, 3, H, W): the frames before each window of a clip (T, 3, H, W), whose first one is the picture before."""
    ends = [FRAMES_PER_LATENT * start + 1 for start in starts]
    return torch.stack([clip[end - MOTION_FRAMES : end] for end in ends])


def encode(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """(n, 4k+1, 3, H, W) in [-1, 1] → normalised latents (n, C, k+1, h, w) float32."""
    with torch.autocast(frames.device.type, torch.bfloat16):
        latents = encode_sequence(vae, frames.transpose(1, 2))[0].float()
    mean, inverse_std = latent_statistics(vae, latents)
    return (latents - mean) * inverse_std


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The reverse of `encode`."""
    mean, inverse_std = latent_statistics(vae, latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        return decode_sequence(vae, latents / inverse_std + mean).float().clamp(-1, 1).transpose(1, 2)


def loss_weights(people: Identities, motion: Tensor, cells: int) -> Tensor:
    """(n, F, cells, cells): 1, and more where the mouth or the eyes are in one of a latent's four frames."""
    who = people.repeat(motion.shape[1])
    edges = torch.arange(cells, device=motion.device) / cells
    total = torch.ones((), device=motion.device)
    for box, extra in ((mouth_box, MOUTH_WEIGHT), (eye_box, EYE_WEIGHT)):
        left, top, right, bottom = box(who, motion.flatten(0, 1))[..., None].unbind(1)
        across = (edges + 1 / cells > left) & (edges < right)
        down = (edges + 1 / cells > top) & (edges < bottom)
        inside = (down[:, :, None] & across[:, None]).unflatten(0, (len(people), -1, FRAMES_PER_LATENT))
        total = total + extra * inside.any(dim=2)
    return total


def _waveforms(corpus: Corpus, device: torch.device, batch: int = 64) -> Iterator[Tensor]:
    for first in range(0, len(corpus.waveforms), batch):
        yield torch.from_numpy(corpus.waveforms[first : first + batch]).to(device).float() / 32767


def _audio_features(speech: Wav2Vec2Model, waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """(n, samples) → (n, layers, C, frames), as the pipeline computes them under timing "aligned"."""
    keep = torch.rand(len(waveforms), 1, generator=generator, device=waveforms.device) >= _AUGMENTED_SHARE
    waveforms = torch.where(keep, waveforms, augment(waveforms, generator))
    states = torch.stack(encode_states(speech, normalise(waveforms)), dim=1)  # (n, layers, S, C)
    last = states.shape[2] - 1
    num_features = num_audio_features(last + 1)
    indices = aligned_feature_indices(num_features, -WARM_UP_FRAMES, FRAMES_PER_LATENT * CLIP_LATENTS, FPS)
    position = torch.from_numpy(indices).to(states.device) * (last / (num_features - 1))
    lower = position.floor().long().clamp(max=last)
    upper = (lower + 1).clamp(max=last)
    mixed = torch.lerp(states[:, :, lower], states[:, :, upper], (position - lower).float()[:, None])
    return mixed.transpose(2, 3).to(torch.bfloat16)


def _describe(people: Identities, row: int, controls: Controls, generator: torch.Generator) -> list[str]:
    """The same clip in two languages, each by template and in free wording."""
    facts = identity_facts(people, row)
    languages: tuple[Language, ...] = ("en", "zh")
    by_template = [describe(controls, facts, language, generator) for language in languages]
    return by_template + [describe_freely(controls, facts, language, generator).text for language in languages]


@torch.no_grad()
def encode_prompts(texts: list[str], encoders: Encoders, batch: int = 256) -> Tensor:
    """(n, text_len, C) bfloat16, zero after the end of each text."""
    device, parts = encoders.vae.device, []
    for first in range(0, len(texts), batch):
        tokens = encoders.tokenizer(
            [clean_prompt(text) for text in texts[first : first + batch]],
            padding="max_length",
            max_length=encoders.text_len,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(device)
        hidden = encoders.text(tokens.input_ids.to(device), mask).last_hidden_state
        parts.append((hidden * mask[..., None]).to(torch.bfloat16))
    return torch.cat(parts)
