"""Pictures of every kind in, exactly sized frames out."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import MEDIA
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wan_s2v import image as image_module
from wan_s2v.errors import ImageError, UsageError
from wan_s2v.image import Framing, apply_framing, choose_size, frame_tensor, load_image, plan_framing, reference_framing

SIDE = 32


def _gradient(height=SIDE, width=SIDE):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], axis=-1).astype(np.uint8)


def _loaded(source):
    return np.asarray(load_image(source).image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_opaque_pictures_of_any_mode_are_what_pil_converts_them_to(mode):
    picture = Image.fromarray(_gradient()).convert("P" if mode == "PA" else mode).convert(mode)
    loaded = load_image(picture)
    assert loaded.warnings == ()
    assert np.array_equal(np.asarray(loaded.image), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("name", ["beach_small.jpg", "person_small.png", "singer_small.png"])
def test_files_equal_the_official_conversion(name):
    assert np.array_equal(_loaded(MEDIA / name), np.asarray(Image.open(MEDIA / name).convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    Image.fromarray(values).save(tmp_path / "grey.png")
    expected = np.rint(values / 257)
    for source in (tmp_path / "grey.png", values, Image.fromarray(values.astype(np.int32))):
        assert np.abs(_loaded(source)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "key"])
def test_transparency_is_laid_over_white_and_reported(tmp_path, kind):
    path = tmp_path / "picture.png"
    if kind == "palette":
        picture = Image.fromarray(np.zeros((SIDE, SIDE), np.uint8), mode=None).convert("P")
        picture.save(path, transparency=0)
    elif kind == "key":
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path, transparency=(0, 0, 0))
    else:
        Image.new(kind, (SIDE, SIDE), 0).save(path)
    loaded = load_image(path)
    assert (np.asarray(loaded.image) == 255).all()
    assert len(loaded.warnings) == 1
    assert "white" in loaded.warnings[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(_gradient(48, 32))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores an upright picture that way
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(_loaded(tmp_path / "phone.png"), np.asarray(upright))


def test_a_damaged_exif_block_does_not_stop_the_picture(tmp_path):
    Image.fromarray(_gradient()).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert _loaded(tmp_path / "odd.jpg").shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.image.getpixel((3, 3)) == (255, 0, 0)
    assert len(loaded.warnings) == 1
    assert "3 frames" in loaded.warnings[0]


def test_arrays_of_bytes_and_floats_are_read():
    pixels = _gradient()
    assert np.array_equal(_loaded(pixels), pixels)
    assert np.array_equal(_loaded(pixels.astype(np.float32) / 255), pixels)
    assert np.array_equal(_loaded(pixels[..., 0])[..., 2], pixels[..., 0])
    assert np.array_equal(_loaded(pixels[::-1, :, :1])[..., 1], pixels[::-1, :, 0])


@pytest.mark.parametrize(
    "array",
    [
        np.full((SIDE, SIDE, 3), 2.0),
        np.full((SIDE, SIDE), np.nan),
        np.zeros((3, SIDE, SIDE), np.uint8),
        np.zeros((SIDE, SIDE, 3), np.int64),
        np.zeros(5, np.uint8),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array):
    with pytest.raises(UsageError):
        load_image(array)


def test_paths_that_lead_nowhere_are_usage_errors(tmp_path):
    for source in (tmp_path / "missing.png", tmp_path, str(tmp_path / "a\0b.png"), tmp_path / ("x" * 400), 7):
        with pytest.raises(UsageError):
            load_image(source)


def test_unreadable_content_is_an_image_error(tmp_path):
    good = (MEDIA / "person_small.png").read_bytes()
    jpeg = (MEDIA / "beach_small.jpg").read_bytes()
    contents = {
        "empty.png": b"",
        "text.png": b"hello",
        "half.png": good[: len(good) // 2],
        "half.jpg": jpeg[:2000],
        "head.png": good[:20],
        "sound.wav": (MEDIA / "talk_0s3.wav").read_bytes(),
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 37_000), value=st.integers(0, 255), name=st.sampled_from(["person_small.png", "beach_small.jpg"])
)
def test_a_damaged_byte_gives_a_picture_or_an_image_error(tmp_path_factory, at, value, name):
    content = bytearray((MEDIA / name).read_bytes())
    content[at % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    try:
        mode = load_image(path).image.mode
    except ImageError:
        return
    assert mode == "RGB"


def test_too_small_pictures_are_refused():
    for size in ((1, 1), (15, 400), (400, 15)):
        with pytest.raises(ImageError, match="at least 16"):
            load_image(Image.new("RGB", size))


def _empty_png(path, height, width):
    """A header that claims a size, with next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_a_decompression_bomb_is_an_image_error_without_pils_warning(tmp_path):
    _empty_png(tmp_path / "bomb.png", 40_000, 40_000)
    _empty_png(tmp_path / "large.png", 10_000, 12_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="400 million"):
            load_image(tmp_path / "bomb.png")
        with pytest.raises(ImageError, match="cannot be decoded"):
            load_image(tmp_path / "large.png")
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.png", "RGB"), ("a.png", "P"), ("a.png", "1")])
def test_huge_pictures_are_read_at_a_reduced_size(tmp_path, monkeypatch, name, mode):
    monkeypatch.setattr(image_module, "REDUCE_ABOVE_PIXELS", 100 * 100)
    picture = Image.fromarray(_gradient(600, 450)).convert(mode)
    picture.save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    most = 100 * 100 * (4 if name == "a.jpg" else 1)  # JPEG stops at the power of two above
    assert loaded.image.width * loaded.image.height <= most
    assert abs(loaded.image.height / loaded.image.width - 600 / 450) < 0.05
    assert "450x600" in loaded.warnings[0]
    small = np.asarray(picture.convert("RGB").resize(loaded.image.size, Image.Resampling.BOX)).astype(float)
    assert np.abs(np.asarray(loaded.image) - small).mean() < 8


def test_a_large_jpeg_is_decoded_within_limits(tmp_path):
    Image.new("L", (20_000, 4_000), 200).save(tmp_path / "wide.jpg")
    loaded = load_image(tmp_path / "wide.jpg")
    assert loaded.image.size == (10_000, 2_000)
    assert loaded.image.getpixel((5, 5)) == (200, 200, 200)


@settings(max_examples=200)
@given(
    height=st.integers(16, 8000),
    width=st.integers(16, 8000),
    area=st.integers(64 * 64, 1280 * 1280),
    multiple=st.sampled_from([16, 32, 64]),
)
def test_chosen_sizes_fit_the_area_and_the_multiple(height, width, area, multiple):
    try:
        out_height, out_width = choose_size(height, width, area, multiple=multiple)
    except UsageError:
        assert max(height, width) / min(height, width) > area / multiple**2 / 4
        return
    assert out_height * out_width <= area
    assert out_height % multiple == 0 == out_width % multiple
    assert out_height >= multiple <= out_width


@pytest.mark.parametrize("area", [0, -5, 4095])
def test_an_area_below_one_square_is_a_usage_error(area):
    with pytest.raises(UsageError, match="at least 4096"):
        choose_size(500, 500, area)


@settings(max_examples=100, deadline=None)
@given(
    image_height=st.integers(16, 300),
    image_width=st.integers(16, 300),
    rows=st.integers(4, 16),
    columns=st.integers(4, 16),
    fit=st.sampled_from(["crop", "pad", "reference"]),
)
def test_any_framing_gives_exactly_the_frame(image_height, image_width, rows, columns, fit):
    height, width = 16 * rows, 16 * columns
    if fit == "reference":
        framing = reference_framing(image_height, image_width, height, width)
    else:
        framing = plan_framing(image_height, image_width, height=height, width=width, fit=fit)
    frame = apply_framing(Image.new("RGB", (image_width, image_height), "white"), framing)
    assert frame.shape == (3, height, width)
    assert frame.dtype == torch.float32
    black = float((frame[0] == -1).float().mean())
    assert set(frame.unique().tolist()) <= {-1.0, 1.0}
    assert ("pads" in framing.description) == (black > 0)
    assert ("crops" in framing.description) == (
        framing.top > 0 or framing.left > 0 or framing.resized_height > height or framing.resized_width > width
    )
    if fit == "crop":
        assert black == 0
    pose = frame_tensor(torch.ones(2, 3, image_height, image_width), framing)
    assert pose.shape == (2, 3, height, width)
    assert abs(float((pose[0, 0] == 0).float().mean()) - black) < 1e-6


def test_descriptions_tell_what_happens():
    def description(*size, **options):
        return plan_framing(*size, **options).description

    assert description(720, 1280, height=720, width=1280) == "shows the whole picture"
    assert description(1000, 1000, height=480, width=640) == "crops 25 % of the height (top and bottom)"
    assert (
        description(1000, 1000, height=480, width=640, fit="pad")
        == "pads 25 % of the frame's width with black (left and right)"
    )
    assert description(100, 100, height=256, width=256) == "enlarges the picture 2.6x"


def test_one_side_is_enough():
    framing = plan_framing(1000, 700, height=832)
    assert (framing.height, framing.width) == (832, 576)
    framing = plan_framing(20_000, 20, width=64)
    assert (framing.height, framing.width) == (4096, 64)


def test_an_area_with_pad_shows_everything():
    framing = plan_framing(1104, 832, area=704 * 1024, fit="pad")
    assert (framing.height, framing.width) == choose_size(1104, 832, 704 * 1024)
    assert framing.resized_height <= framing.height
    assert framing.resized_width <= framing.width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 720, "width": 1283}, "width=1283 is not a multiple of 16. Nearest allowed: 1280, 1296."),
        ({"height": 0, "width": 64}, "height=0 is outside 64 to 4096. Nearest allowed: 64."),
        ({"height": 64, "width": 5000}, "width=5000 is outside 64 to 4096. Nearest allowed: 4096."),
        ({"height": 64.0, "width": 64}, "height=64.0 is not a whole number"),
        ({"height": 64, "area": 5000}, "exclude each other"),
        ({}, "No frame size is given"),
        ({"area": 100}, "area=100 is too small"),
        ({"area": 720 * 1280, "fit": "stretch"}, 'fit="stretch" is not accepted'),
    ],
)
def test_sizes_that_are_not_accepted_name_the_nearest(options, message):
    with pytest.raises(UsageError) as caught:
        plan_framing(500, 500, **options)
    assert message in str(caught.value)


def test_extreme_strips_are_framed_without_gigabytes():
    strip = Image.fromarray(np.repeat(_gradient(16, 16), 1250, axis=0))
    framing = plan_framing(strip.height, strip.width, height=720, width=1280)
    assert framing.resized_height * framing.resized_width > 1_000_000_000
    assert apply_framing(strip, framing).shape == (3, 720, 1280)


def test_both_ways_of_resizing_agree(monkeypatch):
    picture = Image.open(MEDIA / "beach_small.jpg").convert("RGB")
    framing = plan_framing(picture.height, picture.width, height=128, width=256)
    whole = apply_framing(picture, framing)
    monkeypatch.setattr(image_module, "REDUCE_ABOVE_PIXELS", 0)
    assert (whole - apply_framing(picture, framing)).abs().max() <= 1.01 * 2 / 255


def test_framing_is_a_plain_value():
    assert isinstance(reference_framing(220, 166, 256, 192), Framing)
    assert reference_framing(220, 166, 256, 192) == reference_framing(220, 166, 256, 192)
