"""Waveform → wav2vec2 hidden states → audio features, one column per video frame.

Only one window of hidden states is held: features are computed when a clip asks for them. How a video is divided into
clips, and what the transformer does with the features, is not known here.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2Model

from wan_s2v.audio import (
    ENCODER_RECEPTIVE_FIELD,
    ENCODER_STRIDE,
    MIN_SAMPLES,
    MODEL_SAMPLE_RATE,
    forget,
    pieces,
)
from wan_s2v.errors import AudioTooShortError, CheckpointError, UsageError

HIDDEN_STATE_RATE = MODEL_SAMPLE_RATE // ENCODER_STRIDE  # 50 Hz
FEATURE_RATE = 30  # Hz: the official code resamples the hidden states to this rate before it picks one per frame
WINDOW_S = 60.0  # sound up to this length is encoded whole, as the official code does; longer sound in such windows
CONTEXT_S = 10.0  # sound on either side of a window's kept part that only its attention sees


class AudioFeatures:
    """The audio features of one sound at 30 Hz, computed where they are asked for.

    Sound up to `window_s` is encoded whole: exactly the official result. Longer sound is encoded in windows of at most
    `window_s`, whose first and last `context_s` are discarded (not at the ends of the sound). Windows start on the
    encoder's 20 ms grid and the sound is normalised as a whole, so with layer-normalised convolutions (as in the S2V
    checkpoint) every frame enters the attention with the same values; only the attention's view is limited, to at
    least `context_s` on both sides.

    Only one window of hidden states is kept: 5 MB a second for the S2V encoder (25 states of width 1024), 307 MB for
    60 s. Encoding 60 s adds 1.3 GiB to that encoder's weights at its peak (measured on a CPU, float32).

    Source: Wan-Video/Wan2.2 `wan/modules/s2v/audio_encoder.py`.
    """

    def __init__(
        self,
        encoder: Wav2Vec2Model,
        waveform: np.ndarray,
        *,
        num_samples: int | None = None,
        do_normalize: bool = True,
        window_s: float = WINDOW_S,
        context_s: float = CONTEXT_S,
    ) -> None:
        """Prepare, encoding nothing yet.

        Args:
            encoder: on any device; results are those of the official code if its weights are float32.
            waveform: (n,) float32 at 16 kHz; not copied.
            num_samples: cut the sound to this length, or go on with silence up to it.
            do_normalize: the field of this name of the encoder's `Wav2Vec2FeatureExtractor`.
            window_s: longest stretch encoded at once, in seconds.
            context_s: part of a window on either side that is discarded, in seconds.
        Raises: AudioTooShortError below 720 samples; CheckpointError for an encoder with another frame grid.
        """
        _check_frame_grid(encoder)
        self._num_samples = len(waveform) if num_samples is None else num_samples
        self._waveform = waveform[: self._num_samples]
        if self._num_samples < MIN_SAMPLES:
            raise AudioTooShortError(
                f"The sound has {self._num_samples} samples at 16 kHz, but the speech encoder needs at least "
                f"{MIN_SAMPLES} ({MIN_SAMPLES / MODEL_SAMPLE_RATE:.3f} s). Pass a longer recording."
            )
        self.num_hidden_states = (self._num_samples - ENCODER_RECEPTIVE_FIELD) // ENCODER_STRIDE + 1
        self.num_features = num_audio_features(self.num_hidden_states)
        self._encoder = encoder.eval()
        self._offset, self._scale = np.float32(0), np.float32(1)
        if do_normalize:
            self._offset, self._scale = _normalisation(self._waveform, self._num_samples)
        window, self._context = (round(seconds * HIDDEN_STATE_RATE) for seconds in (window_s, context_s))
        fits = self.num_hidden_states <= window
        self._kept = self.num_hidden_states if fits else window - 2 * self._context  # states a window yields
        if self._kept < 1:
            raise UsageError(f"window_s={window_s} leaves nothing between two contexts of {context_s} s. Use more.")
        self._cached: tuple[int, Tensor] | None = None

    def features(self, indices: np.ndarray) -> Tensor:
        """Features at 30 Hz positions: linear interpolation of the 50 Hz hidden states with aligned corners.

        Args:
            indices: (frames,) or (frames, k) integers in -1…num_features-1; -1 gives a zero vector. Any order.
        Returns: (layers, k * C, frames) float32 on the CPU; the k vectors of a frame are concatenated. Layer 0 is
            the input of the encoder's first layer, the last one its normalised output.
        """
        flat = indices.reshape(-1)
        if flat.size and not -1 <= flat.min() <= flat.max() < self.num_features:
            raise IndexError(f"feature indices {flat.min()}…{flat.max()} are outside -1…{self.num_features - 1}")
        config = self._encoder.config
        columns = torch.zeros(config.num_hidden_layers + 1, flat.size, config.hidden_size)
        sounding = flat >= 0
        if sounding.any():
            columns[:, torch.from_numpy(sounding)] = self._interpolate(flat[sounding])
        width = config.hidden_size * math.prod(indices.shape[1:])
        return columns.reshape(len(columns), len(indices), width).transpose(1, 2).contiguous()

    def _interpolate(self, indices: np.ndarray) -> Tensor:
        """(layers, len(indices), C). The positions in float32, as torch computes them: an hour in, it shows."""
        last = self.num_hidden_states - 1
        scale = np.float32(last) / np.float32(max(self.num_features - 1, 1))
        position = scale * indices.astype(np.float32)
        lower = np.minimum(position.astype(np.int64), last)
        upper = np.minimum(lower + 1, last)
        weight = torch.from_numpy(position - lower.astype(np.float32)).clamp(0, 1)[:, None]
        needed, where = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        states = self._hidden_states(needed)
        at_lower, at_upper = torch.from_numpy(where).chunk(2)
        return (1 - weight) * states[:, at_lower] + weight * states[:, at_upper]

    def _hidden_states(self, positions: np.ndarray) -> Tensor:
        """(layers, len(positions), C) hidden states at rising positions, window by window."""
        parts = []
        for window, run in groupby(positions.tolist(), key=lambda position: position // self._kept):
            if self._cached is None or self._cached[0] != window:
                self._cached = None  # first, so that two windows are never held
                self._cached = window, self._encode_window(window * self._kept)
            parts.append(self._cached[1][:, [position - window * self._kept for position in run]])
        return torch.cat(parts, dim=1)

    def _encode_window(self, first: int) -> Tensor:
        """(layers, frames, C) float32 on the CPU: the hidden states that the window at state `first` yields."""
        stop = min(first + self._kept, self.num_hidden_states)
        start = max(first - self._context, 0)
        end = stop + self._context
        is_last = end >= self.num_hidden_states
        sound_end = self._num_samples if is_last else (end - 1) * ENCODER_STRIDE + ENCODER_RECEPTIVE_FIELD
        sound = np.zeros(sound_end - start * ENCODER_STRIDE, np.float32)
        heard = self._waveform[start * ENCODER_STRIDE : sound_end]
        sound[: len(heard)] = heard
        forget(self._waveform)
        sound = (sound - self._offset) / self._scale
        encoder = self._encoder
        input_values = torch.from_numpy(sound)[None].to(encoder.device, encoder.dtype)
        with torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
            output = encoder(input_values, output_hidden_states=True)
        # transformers 5 leaves the last of `hidden_states` without the encoder's final norm; 4 applied it.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack([state[0, first - start : stop - start].float().cpu() for state in states])


def _normalisation(waveform: np.ndarray, num_samples: int) -> tuple[np.float32, np.float32]:
    """Mean and deviation of a sound that goes on with silence up to `num_samples`.

    Sound within one window and without silence: in float32 as Wav2Vec2FeatureExtractor computes them. Longer sound:
    piece by piece in float64, since numpy's variance needs the whole sound twice more.
    """
    if len(waveform) == num_samples <= WINDOW_S * MODEL_SAMPLE_RATE:
        return waveform.mean(), np.sqrt(waveform.var() + 1e-7)
    mean = sum(piece.sum(dtype=np.float64) for piece in pieces(waveform)) / num_samples
    squares = sum(np.square(piece - mean, dtype=np.float64).sum() for piece in pieces(waveform))
    forget(waveform)
    variance = (squares + (num_samples - len(waveform)) * mean**2) / num_samples
    return np.float32(mean), np.float32(np.sqrt(variance + 1e-7))


def _check_frame_grid(encoder: Wav2Vec2Model) -> None:
    stride, receptive_field = 1, 1
    for kernel, step in zip(encoder.config.conv_kernel, encoder.config.conv_stride, strict=True):
        receptive_field += (kernel - 1) * stride
        stride *= step
    if (stride, receptive_field) != (ENCODER_STRIDE, ENCODER_RECEPTIVE_FIELD):
        raise CheckpointError(
            f"The speech encoder has one state per {stride} samples (each sees {receptive_field}); S2V needs one per "
            f"{ENCODER_STRIDE} (seeing {ENCODER_RECEPTIVE_FIELD}). Use the wav2vec2 folder of the S2V checkpoint."
        )


def num_audio_features(num_hidden_states: int) -> int:
    """Features at 30 Hz for so many hidden states at 50 Hz.

    In the official order of double operations: 205 states give 122, where exact arithmetic would give 123.
    """
    return int(num_hidden_states / HIDDEN_STATE_RATE * FEATURE_RATE)


def reference_num_clips(num_features: int, frames_per_clip: int, fps: int) -> int:
    """Clips that the official code makes of a sound: an exact multiple of a clip yields one more, without sound."""
    return int(num_features / (frames_per_clip * (FEATURE_RATE / fps))) + 1


def feature_indices(
    num_features: int,
    num_frames: int,
    fps: int,
    *,
    start_frame: int = 0,
    context: int = 0,
    span_frames: int | None = None,
) -> np.ndarray:
    """The 30 Hz feature that the official code shows at each video frame; -1 (a zero vector) after the sound.

    Args:
        num_features: of the sound, see `num_audio_features`.
        num_frames: frames to give, from `start_frame`.
        fps: of the model's video.
        start_frame: first frame to give, from 0.
        context: m; with m > 0 each frame gets 2m+1 neighbouring features, clamped to the sound.
        span_frames: frames of all clips together, start_frame + num_frames if None; it enters the rounding of times.
    Returns: (num_frames,) int64, with context (num_frames, 2 * context + 1).
    Source: Wan-Video/Wan2.2 `wan/modules/s2v/audio_encoder.py`, `get_audio_embed_bucket_fps`.
    """
    span = start_frame + num_frames if span_frames is None else span_frames
    times = np.linspace(0, span / fps, span, endpoint=False)[start_frame : start_frame + num_frames]
    pool = math.ceil(span / fps * FEATURE_RATE)
    indices = np.clip(np.round(times * FEATURE_RATE).astype(np.int64), 0, pool - 1)
    sounding = indices < num_features
    if context == 0:
        return np.where(sounding, indices, -1)
    neighbours = np.arange(-context, context + 1) * (FEATURE_RATE // fps)
    around = np.clip(indices[:, None] + neighbours, 0, num_features - 1)
    return np.where(sounding[:, None], around, -1)


def aligned_feature_indices(num_features: int, first_frame: int, num_frames: int, fps: int) -> np.ndarray:
    """The 30 Hz feature nearest to the time k / fps of each frame k = first_frame…, clamped to the sound.

    Frames before the sound (k < 0) get its first feature and frames after it the last, never the zero vector: the
    caller has padded the waveform with silence. Integer arithmetic; ties go to the even index, so that at 16 fps
    frames inside the sound get what `feature_indices` gives.

    Returns: (num_frames,) int64.
    """
    numerator = np.arange(first_frame, first_frame + num_frames, dtype=np.int64) * FEATURE_RATE
    whole, rest = np.divmod(numerator, fps)
    rounds_up = (2 * rest > fps) | ((2 * rest == fps) & (whole % 2 == 1))
    return np.clip(whole + rounds_up, 0, num_features - 1)
