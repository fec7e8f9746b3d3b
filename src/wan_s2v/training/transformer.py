"""Training of the embedded model's transformers by flow matching: one for all noise levels, then two experts.

The noise level is sigma in 0…1: x = (1 - sigma) · data + sigma · noise, and the network predicts noise - data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.training.examples import LONGEST_WINDOW, MOTION_FRAMES, USUAL_WINDOW, Examples
from wan_s2v.training.loop import Budget, Loop

TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 1, 1),
    "in_channels": 48,
    "out_channels": 48,
    "pose_channels": 48,
    "num_attention_heads": 5,
    "attention_head_dim": 64,
    "ffn_dim": 576,
    "num_layers": 5,
    "freq_dim": 128,
    "text_dim": 128,
    "text_len": 64,
    "audio_dim": 192,
    "num_audio_layers": 5,
    "num_audio_tokens": 4,
    "audio_inject_layers": (0, 2),
    "use_adain": True,
    "motion_buckets": (1, 2),
}
FLOW_SHIFT = 3.0
BOUNDARY_SNR = 1 / 49  # signal-to-noise ratio below which the high-noise expert works
WINDOWS = (USUAL_WINDOW, USUAL_WINDOW, USUAL_WINDOW, LONGEST_WINDOW, 6)  # of a step's clips, drawn at random
_NO_PROMPT_SHARE, _UNCONDITIONAL_SHARE, _SILENT_SHARE, _POSE_SHARE = 0.4, 0.08, 0.04, 0.6
_HISTORY_SHARE, _OPENING_SHARE = 0.6, 0.12
_HISTORY_NOISE, _REFERENCE_NOISE = 0.1, 0.03


def boundary_ratio(snr: float = BOUNDARY_SNR) -> float:
    """The sigma at which signal and noise have this ratio of powers: ((1 - sigma) / sigma)² = snr."""
    return 1 / (1 + math.sqrt(snr))


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Args:
        latents: (B, C, F, h, w). weights: (B, 1, F, h, w).
        references: (B, C, 1, h, w). motion: (B, C, 3, h, w) or None. pose: (B, C, F, h, w).
        audio: (B, layers, C_audio, 4F). prompts: (B, L, C_text).
    """

    latents: Tensor
    weights: Tensor
    references: Tensor
    motion: Tensor | None
    pose: Tensor
    audio: Tensor
    prompts: Tensor

    def conditioning(self, transformer: WanS2VTransformer) -> Conditioning:
        return Conditioning(
            transformer.prepare_scene(
                self.references, self.latents.shape[2], motion_latents=self.motion, pose_latents=self.pose
            ),
            transformer.prepare_text(list(self.prompts)),
            transformer.prepare_audio(self.audio, MOTION_FRAMES),
        )

    def without_prompt_and_sound(self, negative: Tensor) -> Batch:
        """The same clips as guidance sees them on its other side."""
        return replace(self, prompts=negative.expand_as(self.prompts), audio=torch.zeros_like(self.audio))


def build_transformer(config: dict[str, Any] = TRANSFORMER_CONFIG, seed: int = 0) -> WanS2VTransformer:
    """A new transformer whose output, audio and text start at zero."""
    torch.manual_seed(seed)
    model = WanS2VTransformer(**config)
    outputs = [model.proj_out, *(attention.to_out[0] for attention in model.audio_injector._attentions())]
    outputs += [block.attn2.to_out[0] for block in model._blocks()]
    for layer in outputs:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    if model.audio_injector.adain is not None:
        for layer in model.audio_injector.adain:
            torch.nn.init.zeros_(layer.linear.weight)
            torch.nn.init.zeros_(layer.linear.bias)
    return model


def draw_batch(
    examples: Examples, batch: int, window: int, with_history: bool, generator: torch.Generator, *, drop: bool = True
) -> Batch:
    """Random windows.

    Args:
        window: latents of each clip.
        with_history: whether the clips continue something; first clips otherwise.
        generator: on the device of the examples.
        drop: leave out prompts, sound and poses at times and disturb the pictures that are given.
    """
    draw = _Draw(generator, batch)
    row = draw.integer(len(examples))
    start = torch.zeros_like(row)
    motion = None
    if with_history:
        slot = draw.integer(examples.starts.shape[1] if window <= USUAL_WINDOW else 1)
        opens = draw.chance(_OPENING_SHARE)
        start = examples.starts[row, slot].masked_fill(opens, 0)
        motion = torch.where(opens[:, None, None, None, None], examples.openings[row], examples.motion[row, slot])
    time = start[:, None] + torch.arange(window, device=row.device)
    columns = start[:, None] * FRAMES_PER_LATENT + torch.arange(window * FRAMES_PER_LATENT, device=row.device)
    references = examples.references[row]
    pose = examples.pose[row[:, None], :, time].transpose(1, 2)
    audio = examples.audio[row[:, None], :, :, columns].permute(0, 2, 3, 1)
    prompts = examples.prompts[row, draw.integer(examples.prompts.shape[1])]
    if drop:
        prompts, audio = _drop(examples, row, prompts, audio, draw)
        pose = pose * draw.chance(_POSE_SHARE)[:, None, None, None, None]
        references = draw.disturb(references, _REFERENCE_NOISE)
        motion = None if motion is None else draw.disturb(motion, _HISTORY_NOISE)
    latents = examples.latents[row[:, None], :, time].transpose(1, 2)
    weights = examples.weights[row[:, None], time][:, None]
    return Batch(latents, weights, references, motion, pose, audio, prompts)


def _drop(examples: Examples, row: Tensor, prompts: Tensor, audio: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    """Prompts and sound of a batch with some of them missing."""
    unguided, silent = draw.chance(_UNCONDITIONAL_SHARE), draw.chance(_SILENT_SHARE)
    unsaid = draw.chance(_NO_PROMPT_SHARE) & examples.plain[row]
    prompts = torch.where(unsaid[:, None, None], examples.empty, prompts)
    prompts = torch.where(unguided[:, None, None], examples.negative, prompts)
    return prompts, audio.masked_fill((unguided | silent)[:, None, None, None], 0)


class _Draw:
    """Random numbers for a batch."""

    def __init__(self, generator: torch.Generator, batch: int) -> None:
        self.generator, self.batch = generator, batch

    def integer(self, high: int) -> Tensor:
        return torch.randint(high, (self.batch,), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float) -> Tensor:
        return torch.rand(self.batch, generator=self.generator, device=self.generator.device) < probability

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=torch.float32)

    def disturb(self, latents: Tensor, most: float) -> Tensor:
        """Add noise of a random size up to `most`."""
        size = most * torch.rand(len(latents), 1, 1, 1, 1, generator=self.generator, device=latents.device)
        return latents + size * self.normal(latents)


def shifted(u: Tensor, shift: float = FLOW_SHIFT) -> Tensor:
    """Sigma of uniform u in 0…1."""
    return shift * u / (1 + (shift - 1) * u)


def unshifted(sigma: float, shift: float = FLOW_SHIFT) -> float:
    """The u of a sigma."""
    return sigma / (shift - (shift - 1) * sigma)


def sample_sigmas(batch: int, noise_range: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(B,) noise levels, spread evenly over the range's share of the shifted schedule."""
    low, high = (unshifted(sigma) for sigma in noise_range)
    jitter = torch.rand(batch, generator=generator, device=generator.device)
    u = (torch.arange(batch, device=generator.device) + jitter) / batch
    return shifted(low + (high - low) * u)


def flow_loss(
    transformer: WanS2VTransformer, batch: Batch, sigmas: Tensor, generator: torch.Generator, *, weighted: bool = True
) -> Tensor:
    """(B,) mean squared errors of the predicted velocity."""
    latents = batch.latents.float()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    level = sigmas[:, None, None, None, None]
    noisy = (1 - level) * latents + level * noise
    velocity = transformer(noisy, 1000 * sigmas, batch.conditioning(transformer))
    return squared_error(velocity, noise - latents, batch.weights if weighted else torch.ones_like(batch.weights))


def squared_error(made: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """(B,) weighted means."""
    weights = weights.float()
    return ((made - wanted).square() * weights).mean(dim=(1, 2, 3, 4)) / weights.mean(dim=(1, 2, 3, 4))


def train_transformer(
    transformer: WanS2VTransformer,
    examples: Examples,
    budget: Budget,
    *,
    noise_range: tuple[float, float] = (0.0, 1.0),
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train in place, in the transformer's dtype; afterwards it holds the average of its weights.

    Args:
        noise_range: lowest and highest sigma that this transformer learns.
        batch: clips of the usual length in a step; more of shorter ones.
        seed: differs between processes that train together.
    """

    def loss_of(drawn: Batch, generator: torch.Generator, _choice: torch.Generator) -> Tensor:
        sigmas = sample_sigmas(len(drawn.latents), noise_range, generator)
        return flow_loss(transformer, drawn, sigmas, generator)

    return train_on_windows(
        transformer, examples, loss_of, budget, batch, learning_rate, seed=seed, checkpoint=checkpoint, report=report
    )


def train_on_windows(
    transformer: WanS2VTransformer,
    examples: Examples,
    loss_of: Callable[[Batch, torch.Generator, torch.Generator], Tensor],
    budget: Budget,
    batch: int,
    learning_rate: float,
    *,
    seed: int,
    checkpoint: Path | None,
    report: Callable[[str], None],
) -> Loop:
    """Train in place on random windows, with and without a history.

    Args:
        loss_of: (B,) losses of a batch; its generators are on the transformer's device and on the CPU.
    """
    generator = torch.Generator(transformer.device).manual_seed(seed)
    choice = torch.Generator().manual_seed(seed)
    loop = Loop(
        transformer,
        muon_lr=learning_rate,
        adamw_lr=learning_rate / 2,
        budget=budget,
        checkpoint=checkpoint,
        generators=(generator, choice),
        report=report,
        clip=1.0,
    )
    compile_blocks(transformer)
    for _ in loop:
        window = WINDOWS[int(torch.randint(len(WINDOWS), (), generator=choice))]
        clips = max(1, batch * USUAL_WINDOW // window)
        with_history = bool(torch.rand((), generator=choice) < _HISTORY_SHARE)
        drawn = draw_batch(examples, clips, window, with_history, generator)
        loop.step(loss_of(drawn, generator, choice).mean())
    loop.finish()
    return loop


def compile_blocks(transformer: WanS2VTransformer) -> None:
    """Compile the blocks once for all clip lengths; on the GPU only, where it pays."""
    if transformer.device.type == "cuda":
        for block in transformer.blocks:
            block.compile(dynamic=True)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # a graph without gradients takes longer to compile than to measure once
def measure_loss(
    choose: Callable[[float], WanS2VTransformer],
    examples: Examples,
    sigmas: tuple[float, ...],
    *,
    batches: int = 4,
    batch: int = 16,
    seed: int = 0,
) -> list[float]:
    """Held-out loss per noise level, unweighted, on the same windows and noise for every model.

    Args:
        choose: the transformer for a sigma.
    """
    losses = []
    for sigma in sigmas:
        transformer = choose(sigma)
        generator = torch.Generator(transformer.device).manual_seed(seed)
        parts = []
        for index in range(batches):
            drawn = draw_batch(examples, batch, USUAL_WINDOW, index % 2 == 1, generator, drop=False)
            levels = torch.full((batch,), sigma, device=transformer.device)
            parts.append(flow_loss(transformer, drawn, levels, generator, weighted=False).mean())
        losses.append(float(torch.stack(parts).mean()))
    return losses
