"""The picture that an image-to-video model starts from: the frame's size that follows from it, and its pixels.

The rules are the official ones, which differ between the models and from those of S2V in image.py: I2V-A14B fits the
whole picture into a frame of nearly its shape, TI2V-5B covers the frame and crops. As diffusers' image processors, they
take the place of its own inside its pipelines.

Source: Wan-Video/Wan2.2 `wan/image2video.py`, `wan/textimage2video.py` and `wan/utils/utils.py` (best_output_size).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

from wan_s2v.errors import UsageError


def stretched_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """(height, width) of about `area` pixels in the shape of a picture, both sides rounded down to the multiple.

    Raises: UsageError if the area leaves a side without any.
    """
    sides = math.sqrt(area * (height / width)), math.sqrt(area / (height / width))
    return _usable(int(sides[0] // multiple) * multiple, int(sides[1] // multiple) * multiple, area, multiple)


def cropped_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """(height, width) of at most `area` pixels, whose shape is the nearest to a picture's of two candidates.

    One rounds the width down first and fills the area with the height, the other the reverse; a tie goes to the latter.

    Raises: UsageError if the area leaves a side without any.
    """
    ratio = width / height
    wide = math.sqrt(area * ratio)
    wide_first = max(int(wide // multiple) * multiple, multiple)
    tall_first = max(int(area / wide // multiple) * multiple, multiple)
    candidates = [
        (int(area / wide_first // multiple) * multiple, wide_first),
        (tall_first, int(area / tall_first // multiple) * multiple),
    ]
    fitting = [size for size in candidates if min(size)]
    if not fitting:
        return _usable(0, 0, area, multiple)

    def distance(size: tuple[int, int]) -> float:
        made = size[1] / size[0]
        return max(ratio / made, made / ratio)

    return min(reversed(fitting), key=distance)


def _usable(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    if not min(height, width):
        raise UsageError(
            f"area={area} leaves no frame in the picture's shape, whose sides are multiples of {multiple}. Give a"
            " larger area, or height and width."
        )
    return height, width


def stretch(image: Image.Image, height: int, width: int) -> Tensor:
    """(3, height, width) float32 about [-1, 1]: bicubic without antialiasing, overshoot kept."""
    return torch.nn.functional.interpolate(_pixels(image)[None], size=(height, width), mode="bicubic")[0]


def crop(image: Image.Image, height: int, width: int) -> Tensor:
    """(3, height, width) float32 in [-1, 1]: scaled by Lanczos to cover the frame, then cut around the centre."""
    scale = max(width / image.width, height / image.height)
    # rounding may leave a side one pixel short where the user, not the rule, chose the frame
    size = max(round(image.width * scale), width), max(round(image.height * scale), height)
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return _pixels(scaled.crop((left, top, left + width, top + height)))


def _pixels(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return values.float().div(255).sub_(0.5).div_(0.5)


class StretchedFrame(VideoProcessor):
    """diffusers' processor with `stretch` for PIL images."""

    def preprocess(self, image: Any, height: int, width: int) -> Tensor:
        if isinstance(image, Image.Image):
            return stretch(image, height, width)[None]
        return super().preprocess(image, height=height, width=width)


class CroppedFrame(VideoProcessor):
    """diffusers' processor with `crop` for PIL images."""

    def preprocess(self, image: Any, height: int, width: int) -> Tensor:
        if isinstance(image, Image.Image):
            return crop(image, height, width)[None]
        return super().preprocess(image, height=height, width=width)
