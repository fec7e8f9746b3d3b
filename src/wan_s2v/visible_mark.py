"""A line of text in the corner of every frame that says that people did not film it.

Drawn into the finished frames on their way into the file; the model's own frames never show it.
Source of the size: GB 45438-2025, letters of at least 5 % of the shorter side, for all of the video or 2 s of it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from wan_s2v.errors import UsageError
from wan_s2v.styles import is_chinese

ENGLISH, CHINESE = "AI generated", "AI生成"
AUTO: Final = "auto"
_PICTURE: Final = Path(__file__).parent / "assets" / "mark" / "ai_generated_zh.png"  # CHINESE, so that it needs no font
_LEAST_HEIGHT: Final = 0.055  # of the shorter side: the rule, and room for soft edges
_MARGIN: Final = 0.03
_WHITE, _SHADOW = 0.85, 0.55  # opacity of the letters, and of the dark rim that keeps them legible on white
# Looked for where the built-in font lacks a character: what Linux, Windows and macOS come with for Chinese and others.
_FONTS: Final = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)


def mark_text(mark: str, words: str) -> str:
    """The text of a mark: itself, or for "auto" the sentence in the language of `words`."""
    if mark != AUTO:
        return mark.strip()
    return CHINESE if is_chinese(words) else ENGLISH


class VisibleMark:
    """A text ready to be drawn into frames of one size, at the lower right.

    Raises: UsageError for an empty text, one that is too long for the frame, or one that no font here can show.
    """

    def __init__(self, text: str, height: int, width: int) -> None:
        shorter = min(height, width)
        margin = round(_MARGIN * shorter)
        letters = _letters(text, math.ceil(_LEAST_HEIGHT * shorter))
        pad = max(2, len(letters) // 6)
        shape = np.pad(letters, pad)
        high, wide = shape.shape
        if wide > width - margin or high > height - margin:
            raise UsageError(f"The mark {text!r} is too long for {width}x{height}. Give a shorter text.")
        blur = ImageFilter.GaussianBlur(pad / 3)
        rim = np.asarray(Image.fromarray(shape).filter(ImageFilter.MaxFilter(2 * (pad // 3) + 1)).filter(blur))
        white, dark = (plane.astype(np.float32)[..., None] / 255 for plane in (shape, rim))
        self.text, self.letter_height = text, len(letters)
        bottom, right = min(height - margin + pad, height), min(width - margin + pad, width)
        self.place = slice(bottom - high, bottom), slice(right - wide, right)
        self._light = 255 * _WHITE * white
        self._left = (1 - _WHITE * white) * (1 - _SHADOW * dark)  # of the picture

    def drawn_on(self, frame: np.ndarray) -> np.ndarray:
        """A copy of an (H, W, 3) uint8 frame with the mark on it."""
        marked = frame.copy()
        marked[self.place] = np.rint(frame[self.place] * self._left + self._light).astype(np.uint8)
        return marked


@lru_cache(maxsize=8)
def _letters(text: str, least_height: int) -> np.ndarray:
    """(h, w) uint8 coverage of the text, whose tallest character has at least so many pixels."""
    if not text:
        raise UsageError(f'mark="" shows nothing. Give a text, such as "{ENGLISH}", or auto.')
    if text == CHINESE:
        drawn = Image.open(_PICTURE)
        size = round(drawn.width * least_height / drawn.height), least_height
        return np.asarray(drawn.resize(size, Image.Resampling.BOX))
    points = float(least_height)
    while _tallest(text, _font(text, points)) < least_height:
        points += 1
    font = _font(text, points)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    picture = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).text((-left, -top), text, font=font, fill=255)
    return np.asarray(picture)


def _tallest(text: str, font: ImageFont.FreeTypeFont) -> float:
    """Pixels from foot to head of the tallest character."""
    edges = [font.getbbox(sign) for sign in text]
    return max(bottom - top for _, top, _, bottom in edges)


def _font(text: str, points: float) -> ImageFont.FreeTypeFont:
    """The first font that has every character: Pillow's own, else one of the system's."""
    missing = ""
    for name in (None, *_FONTS):
        try:
            font = ImageFont.load_default(points) if name is None else ImageFont.truetype(name, points)
        except OSError:
            continue
        assert isinstance(font, ImageFont.FreeTypeFont)
        unknown = bytes(font.getmask("\uffff"))
        missing = "".join(sign for sign in text if not sign.isspace() and bytes(font.getmask(sign)) == unknown)
        if not missing:
            return font
    raise UsageError(
        f"No font here can show {missing!r} of the mark {text!r}. Install Noto Sans CJK, or give Latin letters."
    )
