"""Our way through the VAE equals diffusers' own and the official code, in either direction, and on any device."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close, load_golden
from vaes import KINDS, MEAN, STD, random_vae

from wan_s2v.latents import decode_latents, encode_pixels, encode_pose
from wan_s2v.vae import encode_moments, fitting_latents
from wan_s2v.weights import load_model
from wan_s2v.weights.checkpoint import read_vae

# Of float32: diffusers' own modules are 1.6e-5 from float64 where random weights decode 22 latents, 1e-6 in an encode.
PIXELS_ATOL, LATENTS_ATOL = 5e-5, 5e-6
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none")


def _video(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, num_frames, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _latents(num_latents: int) -> torch.Tensor:
    return torch.randn(16, num_latents, 2, 3, generator=torch.Generator().manual_seed(1))


def _plain_encode(vae, pixels):
    """Normalised latents as diffusers' own modules encode them."""
    moments = vae._encode(pixels[None].to(vae.device, vae.dtype))
    return ((moments[0].chunk(2)[0].float() - MEAN) * (1.0 / STD)).cpu()


def _plain_decode(vae, latents):
    z = latents / (1.0 / torch.tensor(STD)) + MEAN
    return vae.decode(z[None].to(vae.device, vae.dtype)).sample[0].float().clamp(-1, 1).cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_latents", [22, 2, 1])
@torch.no_grad()
def test_decoding_equals_the_plain_modules(kind, num_latents):
    vae, latents = random_vae(kind), _latents(num_latents)
    whole = _plain_decode(vae, latents)
    for num_frames in {1, 3, 4 * (num_latents - 1), 1 + 4 * (num_latents - 1)} & set(range(1, 4 * num_latents - 2)):
        made = decode_latents(vae, latents, num_frames)
        assert (made.dtype, made.shape[1]) == (torch.float32, num_frames)
        assert_close(made, whole[:, -num_frames:], PIXELS_ATOL, f"{num_frames} frames")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_frames", [1, 5, 33])
@torch.no_grad()
def test_encoding_equals_the_plain_modules(kind, num_frames):
    vae, video = random_vae(kind), _video(num_frames)
    assert_close(encode_pixels(vae, video), _plain_encode(vae, video), LATENTS_ATOL)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_any_number_of_frames_at_once_gives_the_same_latents(kind):
    vae, videos = random_vae(kind), torch.stack([_video(33), _video(33, seed=1)])
    wanted = vae._encode(videos)
    for latents_per_call in (1, 3, 20):
        assert_close(encode_moments(vae, videos, latents_per_call), wanted, LATENTS_ATOL, f"{latents_per_call}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width", "num_strips"), [(64, 560, 3), (400, 48, 2)])
@torch.no_grad()
def test_strips_give_the_latents_and_pixels_of_whole_frames(kind, height, width, num_strips):
    """Also where the decoder goes on from clip to clip, each strip from its own past."""
    vae, video = random_vae(kind), torch.rand(3, 9, height, width) * 2 - 1
    latents = encode_pixels(vae, video)
    assert_close(encode_pixels(vae, video, num_strips), latents, LATENTS_ATOL)
    whole_past, past = {}, {}
    for part in (latents[:, :2], latents[:, 2:]):
        num_frames = 4 * part.shape[1] - (0 if past else 3)
        whole = decode_latents(vae, part, num_frames, whole_past)
        assert_close(decode_latents(vae, part, num_frames, past, num_strips), whole, PIXELS_ATOL)
    assert (len(whole_past), len(past)) == (1, num_strips)


@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
@torch.no_grad()
def test_clips_can_be_decoded_one_after_the_other_without_a_prefix(kind):
    vae, latents, cache = random_vae(kind), _latents(11), {}
    first = decode_latents(vae, latents[:, :6], 20, cache)
    second = decode_latents(vae, latents[:, 6:], 20, cache)
    whole = decode_latents(vae, latents, 40)
    assert_close(torch.cat((first, second), dim=1), whole, PIXELS_ATOL)


@pytest.mark.parametrize(("name", "file"), [("vae21_tiny", "Wan2.1_VAE.pth"), ("vae22_tiny", "Wan2.2_VAE.pth")])
@torch.no_grad()
def test_both_directions_equal_the_official_vae(name, file, tmp_path):
    torch.save(load_golden(f"{name}.weights")[0], tmp_path / file)
    vae, golden = load_model(read_vae(tmp_path / file), torch.float32, torch.device("cpu")), load_golden(name)[0]
    for frames in (1, 5, 17):
        assert_close(encode_pixels(vae, golden[f"f{frames}.video"]), golden[f"f{frames}.latent"], 1e-5, "latent")
        pixels = decode_latents(vae, golden[f"f{frames}.dec_in"], frames)
        assert_close(pixels, golden[f"f{frames}.dec_out"], PIXELS_ATOL, "pixels")


def _distances(exact, made, plain):
    return (made - exact).norm(), (plain - exact).norm()


@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
@torch.no_grad()
def test_bfloat16_is_at_most_twice_as_far_from_float32_as_the_plain_modules(kind):
    exact, rounded = random_vae(kind), random_vae(kind).bfloat16()
    video, latents = _video(9), _latents(4)
    wanted = _plain_encode(exact, video)
    ours, plain = _distances(wanted, encode_pixels(rounded, video), _plain_encode(rounded, video))
    assert 0 < ours < 2 * plain
    wanted = _plain_decode(exact, latents)
    ours, plain = _distances(wanted, decode_latents(rounded, latents, 13), _plain_decode(rounded, latents))
    assert 0 < ours < 2 * plain


@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
@torch.no_grad()
def test_the_path_of_the_gpu_equals_the_plain_modules_in_the_interpreter(kind, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: it exists for Linux and, as triton-windows, Windows")
    monkeypatch.setattr("wan_s2v.vae._adds_bias_apart", lambda x: True)
    monkeypatch.setattr("wan_s2v.ops.channel_norm.runs_kernels", lambda x: True)
    vae, video, latents = random_vae(kind), _video(5), _latents(3)
    assert_close(encode_pixels(vae, video), _plain_encode(vae, video), LATENTS_ATOL)
    assert_close(decode_latents(vae, latents, 9), _plain_decode(vae, latents), PIXELS_ATOL)
    monkeypatch.setattr("wan_s2v.vae.runs_own_convolution", lambda x: True)
    for own in (False, True):  # the maps with their zeros in plain PyTorch, then with the kernel
        monkeypatch.setattr("wan_s2v.ops.convolution.runs_kernels", lambda x, own=own: own)
        assert_close(encode_pixels(vae, video), _plain_encode(vae, video), LATENTS_ATOL)
        assert_close(decode_latents(vae, latents, 9), _plain_decode(vae, latents), PIXELS_ATOL)


def test_more_latents_go_at_once_where_frames_are_smaller():
    counts = [fitting_latents(h, w, 96, torch.bfloat16) for h, w in ((1440, 2560), (704, 1280), (480, 832), (64, 64))]
    assert counts == [1, 2, 4, 4]
    assert fitting_latents(704, 1280, 96, torch.float32) == 1


@torch.no_grad()
def test_pose_latents_cover_four_frames_each():
    vae, frames = random_vae("wan2.1"), _video(8)
    latents = encode_pose(vae, frames)
    assert latents.shape == (16, 2, 4, 6)
    changed = frames.clone()
    changed[:, 4:] = 0
    assert torch.equal(encode_pose(vae, changed)[:, :1], latents[:, :1])


@pytest.fixture
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_no_tf32")
@torch.no_grad()
def test_float32_on_the_gpu_equals_the_plain_modules_on_the_cpu(kind):
    vae, video, latents = random_vae(kind, base_dim=16, decoder_base_dim=24), _video(17), _latents(9)
    wanted, wanted_pixels = _plain_encode(vae, video), _plain_decode(vae, latents)
    vae.to("cuda")
    assert_close(encode_pixels(vae, video).cpu(), wanted, LATENTS_ATOL, "latents")
    assert_close(decode_latents(vae, latents.cuda(), 33).cpu(), wanted_pixels, PIXELS_ATOL, "pixels")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
@pytest.mark.usefixtures("_no_tf32")
@torch.no_grad()
def test_low_precision_on_the_gpu_is_at_most_twice_as_far_from_float32_as_the_plain_modules(kind, dtype):
    exact = random_vae(kind, base_dim=96, decoder_base_dim=96).to("cuda")
    rounded, video, latents = copy.deepcopy(exact).to(dtype), _video(9), _latents(4)
    wanted = _plain_encode(exact, video)
    ours, plain = _distances(wanted, encode_pixels(rounded, video).cpu(), _plain_encode(rounded, video))
    assert 0 < ours < 2 * plain
    wanted = _plain_decode(exact, latents)
    ours, plain = _distances(wanted, decode_latents(rounded, latents.cuda(), 13).cpu(), _plain_decode(rounded, latents))
    assert 0 < ours < 2 * plain
