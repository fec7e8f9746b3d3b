"""Training of the embedded model's speech encoder: a small `Wav2Vec2Model` that is taught sounds and mouth shapes.

Only the encoder ships. Its hidden states drive the transformer, which mixes the states of all layers; so the mouth is
asked for at every layer. How states become audio features of video frames is `audio_features`' business; what matters
here is its clock: it shows state k at k * 0.02 s, less a drift that grows to 27 ms at the end of a sound of whole
seconds (47 ms at most, for any length). The state's own 25 ms of sound are centred 12.5 ms after that time, so the
encoder is taught to look back a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2Model

from wan_s2v.errors import UsageError
from wan_s2v.training.augment import augment
from wan_s2v.training.corpus import CURVE_HZ, LABEL_HZ, Corpus
from wan_s2v.training.ipa import PHONEMES
from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.speech import SAMPLE_RATE
from wan_s2v.training.visemes import MOUTH_CHANNELS, OPEN

SPEECH_CONFIG: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 640,
    "conv_dim": [96] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 8,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "vocab_size": len(PHONEMES),
}
STRIDE = SAMPLE_RATE // LABEL_HZ  # samples from one state to the next
RECEPTIVE_FIELD = 400  # samples that one state's convolutions see

_LABEL_SMOOTHING = 0.05
_MOUTH_WEIGHT, _EARLY_WEIGHT = 6.0, 1.5
_MOUTH_BETA = 0.1  # errors beyond this count linearly, so that short closures are not averaged away
_CHANNEL_WEIGHTS = (2.0, 1.0, 1.0, 2.0, 1.0, 1.0)
_CLEAN_SHARE, _SPEED_SHARE = 0.15, 0.5  # of the crops: left as spoken; resampled
_SLOWEST, _FASTEST = 0.85, 1.18
_BATCHES_AT_ONCE = 8  # drawn and augmented together: small operations, some of which wait for the GPU
_JOINED = 8  # crops in a row of the last of those batches: at inference attention spans up to a minute
_LONGEST_LAG = 10  # states
_EVALUATED_AT_ONCE_S = 256.0


class Reading(NamedTuple):
    """What the heads say of S states: phonemes (B, S, classes) logits; mouth (B, S, 6); early (layers - 1, B, S, 6)."""

    phonemes: Tensor
    mouth: Tensor
    early: Tensor


class SpeechReader(nn.Module):
    """The encoder with the heads that train it: sound classes and mouth on its output, mouth on the layers before."""

    def __init__(self, config: dict[str, Any] = SPEECH_CONFIG) -> None:
        super().__init__()
        self.encoder = Wav2Vec2Model(Wav2Vec2Config(**config))
        width = self.encoder.config.hidden_size
        self.phonemes = nn.Linear(width, len(PHONEMES))
        self.mouth = nn.Linear(width, len(MOUTH_CHANNELS))
        self.early = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(MOUTH_CHANNELS)))
            for _ in range(self.encoder.config.num_hidden_layers - 1)
        )

    def forward(self, waveforms: Tensor) -> Reading:
        """(B, samples) sound at 16 kHz, normalised as by `normalise` → the heads' words on every state."""
        states = encode_states(self.encoder, waveforms)
        early = [head(state) for head, state in zip(self.early, states[1:-1], strict=True)]
        return Reading(self.phonemes(states[-1]), self.mouth(states[-1]), torch.stack(early))


def encode_states(encoder: Wav2Vec2Model, waveforms: Tensor) -> list[Tensor]:
    """Hidden states of all layers, (B, S, C) each, the last one normalised: equal to the model's own forward.

    Without its hooks, which `torch.compile` cannot follow, and with channels last, which makes the convolutions
    matrix products without transposed copies (backward 1.4 times as fast on two CPU cores).
    """
    features = waveforms[..., None]
    for layer in encoder.feature_extractor.conv_layers:
        features = layer.activation(layer.layer_norm(_convolve(features, layer.conv)))
    hidden = encoder.feature_projection(features)[0]
    hidden = hidden + encoder.encoder.pos_conv_embed(hidden)
    states = [hidden]
    for layer in encoder.encoder.layers:
        output = layer(states[-1])
        states.append(output[0] if isinstance(output, tuple) else output)  # transformers 5 has had both
    return [*states[:-1], encoder.encoder.layer_norm(states[-1])]


def _convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """conv without padding on (B, T, C): one product for each stretch of `stride` taps, on non-overlapping blocks."""
    (taps,), (stride,) = conv.kernel_size, conv.stride
    length = (x.shape[1] - taps) // stride + 1
    blocks = F.pad(x, (0, 0, 0, -x.shape[1] % stride)).unflatten(1, (-1, stride)).flatten(2)
    weight = conv.weight.transpose(1, 2)  # (out, taps, C)
    result = F.linear(blocks, weight[:, :stride].flatten(1), conv.bias)[:, :length]
    for first in range(stride, taps, stride):
        part, begin = weight[:, first : first + stride].flatten(1), first // stride
        result = result + F.linear(blocks[..., : part.shape[1]], part)[:, begin : begin + length]
    return result


def normalise(waveforms: Tensor) -> Tensor:
    """Zero mean and unit variance of each row, as Wav2Vec2FeatureExtractor does with a whole utterance."""
    centred = waveforms - waveforms.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-7).sqrt()


@dataclass(frozen=True)
class Crops:
    """Sounds (B, samples) float32 normalised, with what state k shows: mouth (B, S, 6) in 0…1, labels (B, S) int64."""

    waveforms: Tensor
    mouth: Tensor
    labels: Tensor

    def joined(self, count: int) -> Crops:
        """The same crops end to end, `count` in a row; rows that fill none are left out, and each row's last state."""
        rows, states = len(self.labels) // count, count * self.labels.shape[1]
        first = slice(rows * count)
        return Crops(
            self.waveforms[first, : self.labels.shape[1] * STRIDE].reshape(rows, -1),
            self.mouth[first].reshape(rows, states, -1)[:, :-1],
            self.labels[first].reshape(rows, states)[:, :-1],
        )


@dataclass(frozen=True)
class SpeechPool:
    """A corpus on one device, in its own integer types."""

    waveforms: Tensor
    mouth: Tensor
    labels: Tensor

    @classmethod
    def of(cls, corpus: Corpus, device: torch.device) -> SpeechPool:
        arrays = (corpus.waveforms, corpus.mouth, corpus.labels)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def draw(self, rows: int, num_states: int, generator: torch.Generator) -> Crops:
        """Random crops on the 20 ms grid, half of them at another speed, most of them as another recording.

        Args:
            generator: on the pool's device.
        Raises: UsageError if the clips are too short for such crops.
        """
        device = self.waveforms.device
        clip_samples, samples = self.waveforms.shape[1], (num_states - 1) * STRIDE + RECEPTIVE_FIELD
        if clip_samples < samples * _FASTEST + 2:
            raise UsageError(
                f"Clips of {clip_samples / SAMPLE_RATE:g} s are too short for crops of {num_states / LABEL_HZ:g} s, "
                f"which may be played {_FASTEST} times as fast. Use longer clips or shorter crops."
            )
        random = torch.rand(3, rows, 1, generator=generator, device=device)
        speed = torch.where(random[0] < _SPEED_SHARE, _SLOWEST + (_FASTEST - _SLOWEST) * random[1], 1.0)
        start = (random[2] * ((clip_samples - 1 - samples * speed) / STRIDE)).floor()  # in states
        clips = torch.randint(len(self.waveforms), (rows, 1), generator=generator, device=device)
        state, sample = torch.arange(num_states, device=device), torch.arange(samples, device=device)
        waveforms = _read(self.waveforms, clips, start * STRIDE + sample * speed) / 32767
        altered = round(rows * (1 - _CLEAN_SHARE))
        waveforms = torch.cat((augment(waveforms[:altered], generator), waveforms[altered:]))
        mouth = _read(self.mouth, clips, (start + state * speed) * (CURVE_HZ // LABEL_HZ)) / 255
        labels = self.labels[clips, (start + (state + 0.5) * speed).long()].long()
        return Crops(normalise(waveforms), mouth, labels)


def _read(table: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """table (N, T, ...) at fractional positions (B, S) of the rows (B, 1), linearly interpolated; float32."""
    lower = positions.long().clamp(max=table.shape[1] - 2)
    part = (positions - lower).view(*positions.shape, *[1] * (table.ndim - 2))
    return torch.lerp(table[rows, lower].float(), table[rows, lower + 1].float(), part)


def train_speech_encoder(
    reader: SpeechReader,
    corpus: Corpus,
    budget: Budget,
    *,
    batch: int = 96,
    seconds: float = 4.0,
    learning_rate: float = 3e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
    compile: bool = False,
) -> Loop:
    """Train in place; afterwards the reader holds the average of its weights.

    Args:
        seconds: length of the crops, which are as many states of 20 ms.
        compile: faster steps after about a minute; for a GPU.
    Raises: UsageError if the corpus has too short clips; NumericsError if the loss is not a number.
    """
    device = next(reader.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    loop = Loop(
        reader,
        muon_lr=learning_rate,
        adamw_lr=learning_rate / 2,
        budget=budget,
        checkpoint=checkpoint,
        generators=(generator,),
        report=report,
        clip=1.0,
    )
    crops = _batches(SpeechPool.of(corpus, device), batch, round(seconds * LABEL_HZ), generator)
    compiled = torch.compile(reading_loss, dynamic=False)
    reader.train()
    for _ in loop:
        drawn = next(crops)
        loss_of = compiled if compile and len(drawn.labels) == batch else reading_loss  # one shape is worth it
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(reader, drawn.waveforms, drawn.mouth, drawn.labels)
        loop.step(loss)
    loop.finish()
    reader.eval()
    return loop


def _batches(pool: SpeechPool, batch: int, num_states: int, generator: torch.Generator) -> Iterator[Crops]:
    """Endless batches, several drawn at once, of which the last has long rows; each has its share of clean crops."""
    while True:
        many = pool.draw(batch * _BATCHES_AT_ONCE, num_states, generator)
        for first in range(_BATCHES_AT_ONCE):
            rows = slice(first, None, _BATCHES_AT_ONCE)
            crops = Crops(many.waveforms[rows].contiguous(), many.mouth[rows], many.labels[rows])
            yield crops if first < _BATCHES_AT_ONCE - 1 else crops.joined(min(_JOINED, batch))


def reading_loss(reader: SpeechReader, waveforms: Tensor, mouth: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the sounds plus the error of the mouth, of the output and, with less weight, of each layer."""
    reading = reader(waveforms)
    sounds = F.cross_entropy(
        reading.phonemes.float().flatten(0, 1), labels.reshape(-1), label_smoothing=_LABEL_SMOOTHING
    )
    early = _mouth_loss(reading.early.float(), mouth.expand_as(reading.early))
    return sounds + _MOUTH_WEIGHT * _mouth_loss(reading.mouth.float(), mouth) + _EARLY_WEIGHT * early


def _mouth_loss(found: Tensor, mouth: Tensor) -> Tensor:
    weights = torch.tensor(_CHANNEL_WEIGHTS, device=mouth.device)
    return (F.smooth_l1_loss(found, mouth, beta=_MOUTH_BETA, reduction="none") * (weights / weights.mean())).mean()


@torch.no_grad()
def evaluate_speech_encoder(reader: SpeechReader, corpus: Corpus) -> dict[str, dict[str, float]]:
    """How well whole clips are read, by language; each clip enters as the encoder gets it at inference.

    Returns: for each language in the corpus `clips`; the correlation with the truth of each mouth channel over all its
        clips; `open by clip`, the median of single clips; `phonemes`, the share of states whose sound is right;
        `lag_ms`, by how much the mouth read comes late where the two opening curves correlate best.
    """
    device = next(reader.parameters()).device
    pool = SpeechPool.of(corpus, device)
    num_states = (pool.waveforms.shape[1] - RECEPTIVE_FIELD) // STRIDE + 1
    rows = max(1, int(_EVALUATED_AT_ONCE_S * SAMPLE_RATE / pool.waveforms.shape[1]))
    readings = [reader(normalise(part.float() / 32767)) for part in pool.waveforms.split(rows)]
    mouth = torch.cat([reading.mouth for reading in readings]).float()
    truth = pool.mouth[:, :: CURVE_HZ // LABEL_HZ][:, :num_states].float() / 255
    right = torch.cat([reading.phonemes.argmax(-1) for reading in readings]) == pool.labels[:, :num_states]
    figures = {}
    for language in sorted(set(corpus.languages)):
        chosen = torch.tensor([name == language for name in corpus.languages], device=device)
        figures[language] = _figures(mouth[chosen], truth[chosen], right[chosen])
    return figures


def _figures(mouth: Tensor, truth: Tensor, right: Tensor) -> dict[str, float]:
    figures = {"clips": float(len(mouth))}
    for index, channel in enumerate(MOUTH_CHANNELS):
        figures[channel] = float(correlation(mouth[..., index].flatten(), truth[..., index].flatten()))
    by_clip = correlation(mouth[..., OPEN], truth[..., OPEN])
    figures["open by clip"] = float(by_clip.nanmedian())  # a clip of silence has no correlation
    figures["phonemes"] = float(right.float().mean())
    figures["lag_ms"] = 1000 / LABEL_HZ * best_lag(mouth[..., OPEN], truth[..., OPEN])
    return figures


def correlation(found: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation along the last axis; NaN where one of the two is constant."""
    found, truth = (value - value.mean(-1, keepdim=True) for value in (found, truth))
    return (found * truth).sum(-1) / (found.square().sum(-1) * truth.square().sum(-1)).sqrt()


def best_lag(found: Tensor, truth: Tensor) -> float:
    """Steps by which `found` (clips, S) comes after `truth`, to a fraction, up to 10 either way."""
    end = found.shape[1] - _LONGEST_LAG
    still = truth[:, _LONGEST_LAG:end].flatten()
    lags = range(-_LONGEST_LAG, _LONGEST_LAG + 1)
    scores = [float(correlation(found[:, _LONGEST_LAG + lag : end + lag].flatten(), still)) for lag in lags]
    best = scores.index(max(scores))
    if best in (0, len(scores) - 1):
        return float(lags[best])
    left, middle, right = scores[best - 1 : best + 2]
    return lags[best] + 0.5 * (left - right) / (left - 2 * middle + right)
