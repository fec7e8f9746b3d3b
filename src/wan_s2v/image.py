"""One picture -> the height and width of the film -> normalised pixels.

This is the only place that picks a resolution. Geometry (`Framing`) is planned with integers before anything heavy is
loaded, can be described to the user in words, and is applied to the reference image and to pose frames by two short
functions. It knows nothing of models, latents or files other than pictures.
"""

from __future__ import annotations

import math
import operator
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from wan_s2v.errors import ImageError, UsageError, reason_of

Fit = Literal["crop", "pad"]

OFFICIAL_MULTIPLE = 64
MIN_IMAGE_SIDE = 16
MAX_SIDE = 4096
MAX_IMAGE_PIXELS = 400_000_000
# Above this a picture is read at a reduced size: twice the pixels of the largest frame (4096 x 4096) lose nothing
# that a frame can show, and everything below keeps the official pixels.
REDUCE_ABOVE_PIXELS = 64_000_000

# No PostScript among them: Pillow would start Ghostscript for it.
_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "JPEG2000",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "QOI",
)
_ACCEPTED = "jpg, png, webp, bmp, tiff, gif or avif"
_FRAMED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")  # an MPO's further pictures are previews, not frames
# What Pillow's readers raise on damaged files, by trying: they parse with struct, zlib and plain indexing.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_pixel_limit_lock = threading.Lock()


@dataclass(frozen=True)
class LoadedImage:
    """An RGB picture, upright, and what was changed to get it (one line each, for the user)."""

    image: Image.Image
    warnings: tuple[str, ...] = ()


def load_image(source: str | Path | Image.Image | np.ndarray) -> LoadedImage:
    """Read a picture of any mode as upright 8-bit RGB.

    Args:
        source: a file; a PIL image; or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, or
            floating point in [0, 1].
    Returns: the picture. An opaque 8-bit one has the pixels of PIL's `convert("RGB")`, as in the official code;
        transparency is laid over white, 16-bit grey is scaled (PIL clips it), the first of several frames is taken.
    Raises: UsageError if the path does not exist or is a folder, or the argument is none of the above; ImageError if
        the content is not a readable picture, has a side below 16 or more than 400 million pixels.
    """
    if isinstance(source, np.ndarray):
        return _prepared(_image_of_array(source), "The image array", [])
    if isinstance(source, Image.Image):
        return _prepared(source, "The image", [])
    if not isinstance(source, (str, Path)):
        raise UsageError(
            f"An image of type {type(source).__name__} is not accepted. Pass a path, a PIL image or an array."
        )
    image, warnings = _open(Path(source))
    with image:
        return _prepared(image, str(source), warnings)


def read_image_size(path: Path) -> tuple[int, int]:
    """Height and width as stored, from the header alone. Raises: as `load_image`."""
    image, _ = _open(path)
    with image:
        return image.height, image.width


def _prepared(image: Image.Image, name: str, warnings: list[str]) -> LoadedImage:
    try:
        _check_pixels(image.height, image.width, name)
        upright = _upright(_shrink_huge(image, name, warnings), warnings)
        rgb = _to_rgb(upright, name, warnings)
    except _DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded ({reason_of(error)}). Save it again as png or jpg.") from error
    return LoadedImage(rgb, tuple(warnings))


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """The lazily opened file and the warning about further frames."""
    try:
        if not path.exists():
            raise UsageError(f"Image {path} does not exist. Check the path.")
        if path.is_dir():
            raise UsageError(f"Image {path} is a folder. Pass a picture file ({_ACCEPTED}).")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty. Pass a picture ({_ACCEPTED}).")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"Image {str(path)[:200]} cannot be opened ({reason_of(error)}). Check the path.") from error
    try:
        with _pixel_limit_lock:
            Image.init()
            # Pillow's own limit is a warning at 89 and an error at 179 million pixels; ours is checked by the caller.
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path, formats=[f for f in _FORMATS if f in Image.OPEN])
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        several = image.format in _FRAMED_FORMATS and getattr(image, "n_frames", 1) > 1
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path} is not a picture that can be read. Accepted: {_ACCEPTED}.") from error
    return image, [f"{path} holds {image.n_frames} frames; the first is used."] if several else []  # type: ignore[attr-defined]


def _check_pixels(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_IMAGE_SIDE:
        raise ImageError(
            f"{name} has {width}x{height} pixels. Each side must be at least {MIN_IMAGE_SIDE}; pass a "
            "larger picture (a face needs far more than that)."
        )
    if height * width > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"{name} has {width}x{height} pixels. At most {MAX_IMAGE_PIXELS // 1_000_000} million are "
            "accepted; make it smaller first."
        )


def _shrink_huge(image: Image.Image, name: str, warnings: list[str]) -> Image.Image:
    """The picture itself, or one reduced by a whole factor where it is far larger than any frame."""
    height, width = image.height, image.width
    factor = math.isqrt(math.ceil(height * width / REDUCE_ABOVE_PIXELS) - 1) + 1
    factor = min(factor, min(height, width) // MIN_IMAGE_SIDE)
    if factor <= 1:
        return image
    image.draft(None, (width // factor, height // factor))  # JPEG only: decodes at 1/2, 1/4 or 1/8 size
    left = min(factor, image.width * factor // width)
    if left > 1:
        if image.mode in ("P", "PA", "1"):  # indices and single bits cannot be averaged
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image = image.reduce(left)
    warnings.append(f"{name} has {width}x{height} pixels; it is read at {image.width}x{image.height}.")
    return image


def _upright(image: Image.Image, warnings: list[str]) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        warnings.append("The picture's EXIF block is damaged; its orientation is ignored.")
        return image


def _to_rgb(image: Image.Image, name: str, warnings: list[str]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_grey(image, name).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    warnings.append(f"{name} has transparent parts; they are laid over white.")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def _scaled_grey(image: Image.Image, name: str) -> Image.Image:
    """8-bit grey of 16-bit, 32-bit or floating point grey, which PIL would clip at 255."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values. Save it again as an 8-bit png.")
    top = float(values.max())
    if image.mode == "F":
        full = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:
        full = 65535.0 if top <= 65535 else 2.0**31 - 1
    return Image.fromarray((values.clip(0, full) * (255 / full) + 0.5).astype(np.uint8))


def _image_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UsageError(
            f"An image array of shape {tuple(array.shape)} is not accepted. Pass (H, W), (H, W, 3) or (H, W, 4)."
        )
    if array.size == 0:
        raise ImageError(f"The image array of shape {tuple(array.shape)} is empty. Pass a picture.")
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / 65535
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UsageError(
                f"A floating point image array must lie in [0, 1]; this one spans {array.min():g} to "
                f"{array.max():g}. Scale it, or pass uint8."
            )
        array = (array.astype(np.float32) * 255 + 0.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UsageError(
            f"An image array of type {array.dtype} is not accepted. Pass uint8, uint16, or float in [0, 1]."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def choose_size(
    image_height: int, image_width: int, area: int, *, multiple: int = OFFICIAL_MULTIPLE
) -> tuple[int, int]:
    """Height and width of the film for a picture and a pixel budget; small pictures are not enlarged.

    Args:
        area: most pixels a frame may have.
        multiple: both sides are multiples of this; the official code has 64.
    Raises: UsageError if `area` does not hold one square of `multiple`, or no size of this aspect fits it.
    Source: Wan-Video/Wan2.2 `wan/speech2video.py`; the halved quadratic formula is as there.
    """
    if area < multiple * multiple:
        raise UsageError(f"area={area} is too small. Accepted: at least {multiple * multiple} ({multiple}x{multiple}).")
    k, pixels = multiple - 1, image_height * image_width
    if pixels <= area:
        largest, smallest = 1.0, 0.1
    else:
        b, c = k * (image_height + image_width), k * k - area
        largest = math.sqrt(area / pixels)
        smallest = (-b + math.sqrt(b * b - 2 * pixels * c)) / (2 * pixels)
    for i in range(100):
        scale = largest - (largest - smallest) * i / 100
        height, width = ((int(side * scale) + k) // multiple * multiple for side in (image_height, image_width))
        if height and width and height * width <= area:
            return height, width
    aspect = image_width / image_height
    width = int(math.sqrt(area * aspect) // multiple * multiple)
    height = int(math.sqrt(area / aspect) // multiple * multiple)
    if width >= image_width or height >= image_height:
        width, height = image_width // multiple * multiple, image_height // multiple * multiple
    if not height or not width:
        raise UsageError(
            f"area={area} holds no frame for a picture of {image_width}x{image_height}. "
            "Give a larger area, or height and width."
        )
    return height, width


@dataclass(frozen=True)
class Framing:
    """How a picture is resized and cut to the frame, in pixels; negative `top` or `left` is padding."""

    image_height: int
    image_width: int
    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    fit: Literal["crop", "pad", "reference"]

    @property
    def description(self) -> str:
        """What is lost, padded or enlarged, as one line for the user."""
        parts = []
        for frame, resized, side, ends in (
            (self.width, self.resized_width, "width", "left and right"),
            (self.height, self.resized_height, "height", "top and bottom"),
        ):
            if resized > frame:
                parts.append(f"crops {_percent(1 - frame / resized)} of the {side} ({ends})")
            elif resized < frame:
                parts.append(f"pads {_percent(1 - resized / frame)} of the frame's {side} with black ({ends})")
        scale = self.resized_height * self.resized_width / (self.image_height * self.image_width)
        if scale > 1.05**2:
            parts.append(f"enlarges the picture {math.sqrt(scale):.1f}x")
        return "; ".join(parts) or "shows the whole picture"


def _percent(share: float) -> str:
    return f"{round(share * 100)} %" if share >= 0.01 else "less than 1 %"


def _offset(resized: int, frame: int) -> int:
    return -((frame - resized) // 2) if resized < frame else round((resized - frame) / 2)


def _framing(
    image: tuple[int, int], frame: tuple[int, int], resized: tuple[int, int], fit: Literal["crop", "pad", "reference"]
) -> Framing:
    return Framing(*image, *frame, *resized, _offset(resized[0], frame[0]), _offset(resized[1], frame[1]), fit)


def reference_framing(image_height: int, image_width: int, height: int, width: int) -> Framing:
    """The official geometry: the shorter side becomes min(height, width), then a centre crop.

    Thin bars appear where the frame is longer than the resized picture.
    Source: Wan-Video/Wan2.2 `wan/speech2video.py` (torchvision Resize and CenterCrop).
    """
    side = min(height, width)
    if image_width <= image_height:
        resized = (int(side * image_height / image_width), side)
    else:
        resized = (side, int(side * image_width / image_height))
    return _framing((image_height, image_width), (height, width), resized, "reference")


def fit_framing(image_height: int, image_width: int, height: int, width: int, fit: Fit) -> Framing:
    """Cover the frame and cut the rest ("crop"), or show the whole picture between black bars ("pad")."""
    vertical, horizontal = height / image_height, width / image_width
    if fit == "crop":
        scale = max(vertical, horizontal)
        resized = (max(height, round(image_height * scale)), max(width, round(image_width * scale)))
    else:
        scale = min(vertical, horizontal)
        resized = (min(height, max(1, round(image_height * scale))), min(width, max(1, round(image_width * scale))))
    return _framing((image_height, image_width), (height, width), resized, fit)


def plan_framing(
    image_height: int,
    image_width: int,
    *,
    height: int | None = None,
    width: int | None = None,
    area: int | None = None,
    fit: Fit = "crop",
    multiple: int = 16,
    min_side: int = 64,
) -> Framing:
    """Decide the frame's size and how the picture goes into it.

    Args:
        height, width: exact sides, each a multiple of `multiple` from `min_side` to 4096. With one of them, the other
            follows the picture's aspect.
        area: pixel budget in place of sides; size and, with fit="crop", geometry are then the official ones.
        fit: "crop" fills the frame and cuts what is outside; "pad" shows everything, with black bars.
    Raises: UsageError for a side, area or fit that is not accepted, or if neither sides nor area are given.
    """
    if fit not in ("crop", "pad"):
        raise UsageError(f'fit="{fit}" is not accepted. Use "crop" or "pad".')
    if height is None and width is None:
        if area is None:
            raise UsageError("No frame size is given. Pass height and width, one of them, or area.")
        size = choose_size(image_height, image_width, area, multiple=math.lcm(OFFICIAL_MULTIPLE, multiple))
        return (reference_framing if fit == "crop" else _pad_framing)(image_height, image_width, *size)
    if area is not None:
        raise UsageError("height or width and area exclude each other. Pass the sides or the area.")
    limits = (multiple, min_side)
    if height is None:
        width = _checked_side("width", width, *limits)
        height = _rounded_side(width * image_height / image_width, *limits)
    elif width is None:
        height = _checked_side("height", height, *limits)
        width = _rounded_side(height * image_width / image_height, *limits)
    else:
        height, width = _checked_side("height", height, *limits), _checked_side("width", width, *limits)
    return fit_framing(image_height, image_width, height, width, fit)


def _pad_framing(image_height: int, image_width: int, height: int, width: int) -> Framing:
    return fit_framing(image_height, image_width, height, width, "pad")


def _rounded_side(length: float, multiple: int, min_side: int) -> int:
    lowest, highest = -(-min_side // multiple) * multiple, MAX_SIDE // multiple * multiple
    return max(lowest, min(highest, round(length / multiple) * multiple))


def _checked_side(name: str, side: int | None, multiple: int, min_side: int) -> int:
    try:
        value = operator.index(side)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(
            f"{name}={side!r} is not a whole number. Pass a multiple of {multiple} from {min_side} to {MAX_SIDE}."
        ) from None
    below, above = value // multiple * multiple, -(-value // multiple) * multiple
    nearest = sorted({_rounded_side(below, multiple, min_side), _rounded_side(above, multiple, min_side)})
    allowed = ", ".join(map(str, nearest))
    if not min_side <= value <= MAX_SIDE:
        raise UsageError(f"{name}={value} is outside {min_side} to {MAX_SIDE}. Nearest allowed: {allowed}.")
    if value % multiple:
        raise UsageError(f"{name}={value} is not a multiple of {multiple}. Nearest allowed: {allowed}.")
    return value


def apply_framing(image: Image.Image, framing: Framing) -> Tensor:
    """(3, height, width) float32 in [-1, 1]: PIL bilinear resize in 8 bits, cut, padded with black."""
    top, left = max(framing.top, 0), max(framing.left, 0)
    rows, columns = min(framing.height, framing.resized_height), min(framing.width, framing.resized_width)
    if framing.resized_height * framing.resized_width <= REDUCE_ABOVE_PIXELS:
        resized = image.resize((framing.resized_width, framing.resized_height), Image.Resampling.BILINEAR)
        visible = resized.crop((left, top, left + columns, top + rows))
    else:
        # A strip of 16 x 20000 pixels would become a picture of gigabytes. The box is float32 inside PIL, which moves
        # some pixels by one level, so it is not used where the official pixels matter.
        across, down = image.width / framing.resized_width, image.height / framing.resized_height
        box = (
            left * across,
            top * down,
            min((left + columns) * across, image.width),
            min((top + rows) * down, image.height),
        )
        visible = image.resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    frame = torch.zeros(framing.height, framing.width, 3, dtype=torch.uint8)
    top, left = max(-framing.top, 0), max(-framing.left, 0)
    frame[top : top + rows, left : left + columns] = torch.from_numpy(np.array(visible))
    return frame.permute(2, 0, 1).float() / 255 * 2 - 1


def frame_tensor(frames: Tensor, framing: Framing) -> Tensor:
    """Pose frames (T, 3, h, w) in [-1, 1] -> (T, 3, height, width): float resize with antialias, padded with mid grey.

    Source: Wan-Video/Wan2.2 `wan/speech2video.py`, which normalises poses before it resizes them.
    """
    size = (framing.resized_height, framing.resized_width)
    if frames.shape[-2:] != size:
        frames = torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = max(framing.top, 0), max(framing.left, 0)
    visible = frames[..., top : top + framing.height, left : left + framing.width]
    result = frames.new_zeros(*frames.shape[:-2], framing.height, framing.width)
    top, left = max(-framing.top, 0), max(-framing.left, 0)
    result[..., top : top + visible.shape[-2], left : left + visible.shape[-1]] = visible
    return result
