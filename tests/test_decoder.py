"""Decoding less, more at once, or in several calls gives the frames of one decode of everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from vaes import KINDS, random_vae

from wan_s2v import decoder
from wan_s2v.decoder import _stages, decode_frames
from wan_s2v.vae import Strip, split_in_strips

ATOL = 5e-5  # oneDNN sums in another order for other numbers of frames; plain modules are 1.6e-5 from float64


def _decode(vae, z, num_kept, **options):
    return torch.cat(list(decode_frames(vae, z, num_kept, **options)), dim=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_latents", [22, 2])
@torch.no_grad()
def test_late_started_levels_give_the_same_frames_as_decoding_everything(kind, num_latents):
    vae, z = random_vae(kind), torch.randn(1, 16, num_latents, 2, 3)
    whole = _decode(vae, z, num_latents, latents_per_call=1)
    assert whole.shape[2] == 4 * num_latents - 3
    for num_kept in (1, 2, num_latents - 1, num_latents):
        kept = _decode(vae, z, num_kept, latents_per_call=1)
        assert_close(kept, whole[:, :, -4 * num_kept :], 0, f"{num_kept} latents")


def test_levels_start_as_late_as_their_view_of_the_past_allows():
    assert [stage.lookback for stage in _stages(random_vae("wan2.1").decoder)] == [None, 28, 14, 7, 4, 1]


@torch.no_grad()
def test_a_level_started_later_would_change_the_frames():
    """Guards the test above: the chosen starts are not simply generous."""
    vae, z = random_vae("wan2.1"), torch.randn(1, 16, 12, 2, 3)
    assert (_decode(vae, z[:, :, 9:], 1) - _decode(vae, z, 1)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latents_per_call", [3, 40])
@torch.no_grad()
def test_several_latents_at_once_give_the_same_frames(kind, latents_per_call):
    vae, z = random_vae(kind), torch.randn(1, 16, 22, 2, 3)
    for num_kept in (22, 5):
        one_by_one = _decode(vae, z, num_kept, latents_per_call=1)
        assert_close(_decode(vae, z, num_kept, latents_per_call=latents_per_call), one_by_one, ATOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width", "count"), [(4, 70, 2), (70, 3, 7), (2, 5, 9)])
@torch.no_grad()
def test_strips_give_the_frames_of_one_decode(kind, height, width, count):
    """The strips of the first two cases are wide enough to have neither edge of the frame in their margins."""
    vae, z = random_vae(kind), torch.randn(1, 16, 5, height, width)
    whole = _decode(vae, z, 3, latents_per_call=1)
    strips = split_in_strips(height, width, count)
    assert len(strips) == min(count, max(height, width))
    parts = [_decode(vae, z, 3, strip=strip, latents_per_call=1) for strip in strips]
    assert_close(torch.cat(parts, dim=strips[0].axis), whole, ATOL)


@torch.no_grad()
def test_a_smaller_margin_would_change_the_frames(monkeypatch):
    """For each level: the margins are as small as its convolutions allow, but for a pixel lost in halving."""
    vae, z = random_vae("wan2.1"), torch.randn(1, 16, 1, 1, 70)
    strip = Strip(4, 30, 40)
    whole = _decode(vae, z, 1, strip=strip)
    stages = _stages(vae.decoder)
    assert [stage.margin for stage in stages] == [None, 13, 12, 10, 7, 1]
    for index in range(1, len(stages)):
        less = [*stages[:index], replace(stages[index], margin=stages[index].margin - 2), *stages[index + 1 :]]
        if stages[index].margin == 1:
            less[index] = replace(stages[index], margin=0)
        monkeypatch.setattr(decoder, "_stages", lambda _decoder, less=less: less)
        assert (_decode(vae, z, 1, strip=strip) - whole).abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [1, 2, 9])
@torch.no_grad()
def test_a_carried_cache_continues_bit_for_bit(kind, split):
    vae, z = random_vae(kind), torch.randn(1, 16, 12, 2, 3)
    cache = {}
    parts = [_decode(vae, part, part.shape[2], cache=cache, latents_per_call=1) for part in z.tensor_split([split], 2)]
    assert_close(torch.cat(parts, dim=2), _decode(vae, z, 12, latents_per_call=1), 0)


@torch.no_grad()
def test_a_call_that_keeps_little_leaves_the_whole_past_to_the_next():
    vae, z, cache = random_vae("wan2.1"), torch.randn(1, 16, 45, 2, 3), {}
    whole = _decode(vae, z, 24, latents_per_call=1)
    for begin, end, num_kept in ((0, 21, 2), (21, 43, 1), (43, 45, 2)):
        made = _decode(vae, z[:, :, begin:end], num_kept, cache=cache, latents_per_call=2)
        frames = slice(4 * (end - num_kept - 21), 4 * (end - 21))
        wanted = whole[:, :, frames] if end > 21 else _decode(vae, z[:, :, :21], 2)
        assert_close(made, wanted, ATOL, f"latents {begin} to {end}")


@torch.no_grad()
def test_a_forgotten_cache_would_change_the_frames():
    vae, z = random_vae("wan2.1"), torch.randn(1, 16, 6, 2, 3)
    cache = {}
    _decode(vae, z[:, :, :3], 3, cache=cache)
    continued, afresh = _decode(vae, z[:, :, 3:], 3, cache=cache), _decode(vae, z[:, :, 3:], 3)
    assert (continued.shape[2], afresh.shape[2]) == (12, 9)
    assert (continued[:, :, -9:] - afresh).abs().max() > 1e-2


@torch.no_grad()
def test_a_cache_keeps_two_frames_for_every_convolution_and_nothing_larger():
    vae, cache = random_vae("wan2.1"), {}
    _decode(vae, torch.randn(1, 16, 3, 2, 3), 3, cache=cache)
    assert len(cache) == 32  # as many as the official decoder keeps
    for past in cache.values():
        assert past.shape[2] == 2
        assert past.untyped_storage().nbytes() == past.numel() * past.element_size()
