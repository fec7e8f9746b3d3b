"""Looks of a film that can be picked by name instead of described: light, shot size, lens, colour, camera movement.

A name stands for a phrase, in English and in Chinese, that goes behind the prompt in the prompt's own language. Plain
text in, plain text out; any model that reads a prompt can use it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wan_s2v.errors import UsageError


@dataclass(frozen=True)
class Style:
    """A phrase for prompts. Of one kind a prompt takes one."""

    name: str
    kind: str
    english: str
    chinese: str


STYLES: Final = tuple(
    Style(name, kind, english, chinese)
    for kind, entries in {
        "light": (
            ("golden-hour", "warm low sunlight of the last hour before sunset", "日落前的暖色低角度阳光"),
            ("blue-hour", "soft blue light of dusk after sunset", "日落后暮色中的柔和蓝光"),
            ("overcast", "even shadowless daylight under an overcast sky", "阴天均匀无影的日光"),
            ("hard-sun", "hard midday sun with crisp short shadows", "正午强烈阳光，阴影短而清晰"),
            ("window-light", "soft daylight from a window at one side of the scene", "侧面窗户透进的柔和日光"),
            (
                "backlight",
                "strong light from behind that draws a bright rim around the subject",
                "强烈逆光勾勒出主体的明亮轮廓",
            ),
            ("low-key", "low-key lighting, a single source and deep shadows", "低调布光，单一光源，阴影深重"),
            ("high-key", "high-key lighting, bright and nearly without shadow", "高调布光，画面明亮，几乎没有阴影"),
            ("candlelight", "flickering warm candlelight in a dark room", "昏暗房间里摇曳的暖色烛光"),
            ("neon", "coloured neon light reflected on wet surfaces", "彩色霓虹灯光映在潮湿的表面上"),
            ("moonlight", "cool moonlight at night", "夜晚清冷的月光"),
        ),
        "shot": (
            ("extreme-close-up", "extreme close-up of a detail that fills the frame", "大特写，细节充满画面"),
            ("close-up", "close-up of the face", "面部特写"),
            ("medium-close-up", "medium close-up from the chest up", "胸部以上的中近景"),
            ("medium-shot", "medium shot from the waist up", "腰部以上的中景"),
            ("full-shot", "full shot, the whole figure from head to feet", "全景，从头到脚的完整人物"),
            ("wide-shot", "wide shot, small figures in a large setting", "远景，广阔环境中的小小人物"),
            (
                "over-the-shoulder",
                "shot over the shoulder of a person in the foreground",
                "越过前景人物肩膀拍摄的过肩镜头",
            ),
        ),
        "lens": (
            ("wide-angle", "wide-angle lens with stretched perspective", "广角镜头，透视拉伸"),
            ("normal-lens", "50 mm lens with natural perspective", "50毫米镜头，透视自然"),
            ("telephoto", "long telephoto lens that compresses depth", "长焦镜头，空间压缩"),
            ("macro", "macro lens very close to the subject", "微距镜头，极近距离"),
            ("fisheye", "fisheye lens with curved edges", "鱼眼镜头，边缘弯曲"),
            ("shallow-focus", "wide aperture, sharp subject before a blurred background", "大光圈，主体清晰，背景虚化"),
            ("deep-focus", "small aperture, sharp from foreground to background", "小光圈，前景到背景全部清晰"),
            (
                "anamorphic",
                "anamorphic lens with oval highlights and horizontal flares",
                "变形宽银幕镜头，椭圆光斑与水平眩光",
            ),
        ),
        "colour": (
            ("warm", "warm colours of amber and orange", "琥珀与橙色的暖色调"),
            ("cool", "cool colours of blue and cyan", "蓝色与青色的冷色调"),
            ("teal-orange", "teal shadows against orange skin tones", "青色阴影与橙色肤色的对比色调"),
            ("muted", "muted colours of low saturation", "低饱和度的素雅色调"),
            ("vivid", "vivid saturated colours", "鲜艳饱和的色彩"),
            ("pastel", "light pastel colours", "清淡的粉彩色调"),
            ("black-and-white", "black and white with rich greys", "黑白画面，灰阶丰富"),
            ("faded-film", "faded colours and fine grain of old film", "老胶片的褪色色彩与细腻颗粒"),
        ),
        "camera": (
            ("static", "the camera stands still on a tripod", "镜头固定在三脚架上不动"),
            ("push-in", "the camera moves slowly towards the subject", "镜头缓缓推近主体"),
            ("pull-out", "the camera moves slowly away from the subject", "镜头缓缓拉远"),
            ("pan-left", "the camera turns slowly to the left", "镜头缓缓向左摇"),
            ("pan-right", "the camera turns slowly to the right", "镜头缓缓向右摇"),
            ("tilt-up", "the camera tilts slowly upwards", "镜头缓缓上仰"),
            ("tilt-down", "the camera tilts slowly downwards", "镜头缓缓下俯"),
            ("tracking", "the camera moves along beside the subject", "镜头在侧面跟随主体移动"),
            ("orbit", "the camera circles around the subject", "镜头环绕主体移动"),
            ("crane-up", "the camera rises high above the scene", "镜头升至场景高处"),
            ("handheld", "handheld camera with slight natural shake", "手持镜头，轻微自然晃动"),
            ("aerial", "aerial view from a drone gliding over the scene", "无人机滑过场景的航拍视角"),
        ),
    }.items()
    for name, english, chinese in entries
)
_BY_NAME: Final = {style.name: style for style in STYLES}
_HAN: Final = re.compile(r"[㐀-鿿]")
_WORD: Final = re.compile(r"[A-Za-zÀ-ɏ]+")


def is_chinese(prompt: str) -> bool:
    """Whether a text has more Chinese characters than words in Latin letters."""
    return len(_HAN.findall(prompt)) > len(_WORD.findall(prompt))


def with_styles(prompt: str, names: Sequence[str]) -> str:
    """The prompt with the phrases of these styles behind it, in its language; as it was without any.

    Raises: UsageError for a name that does not exist, and for two of one kind.
    """
    chosen: dict[str, Style] = {}
    for name in names:
        style = _find(name)
        other = chosen.setdefault(style.kind, style)
        if other is not style:
            raise UsageError(f"style {other.name} and style {style.name} are both of {style.kind}. Give one of them.")
    if not chosen:
        return prompt
    chinese, text = is_chinese(prompt), prompt.strip()
    if chinese:
        phrases = "，".join(style.chinese for style in chosen.values())
        return f"{text.rstrip('。，, .')}。{phrases}。"
    phrases = ", ".join(style.english for style in chosen.values())
    sentence = f"{phrases[0].upper()}{phrases[1:]}."
    return f"{text}{'' if not text or text[-1] in '.!?' else '.'} {sentence}".strip()


def _find(name: str) -> Style:
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else "See wan-s2v styles."
        raise UsageError(f"style {name!r} does not exist. {hint}")
    return _BY_NAME[name]
