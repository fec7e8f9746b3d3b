"""Prompts that say what a clip shows: who, what they do, and how the camera moves, in English and Chinese.

Clauses are dropped now and then, but an expression, a gesture or a camera movement that was asked for is always said.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wan_s2v.errors import UsageError
from wan_s2v.training.identities import BACKGROUNDS, BEARDS, CLOTHES, COVERS, HAIR_NAMES, HAIR_STYLES, Identities
from wan_s2v.training.motion import Controls

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Facts:
    """What is worth saying about a person and the place, as the names used by `identities`."""

    woman: bool
    hair_style: str
    hair_colour: str
    cover: str
    glasses: bool
    beard: str
    clothes: str
    clothes_colour: str
    background: str


def identity_facts(identity: Identities, row: int = 0) -> Facts:
    """Facts about one person of a batch."""
    values = {name: value[row] for name, value in identity.values.items()}

    def name(key: str, names: tuple[str, ...]) -> str:
        return names[int(values[key])]

    return Facts(
        woman=bool(values["feminine"]), hair_style=name("hair_style", tuple(HAIR_STYLES)),
        hair_colour=name("hair_colour", HAIR_NAMES), cover=name("cover", COVERS), glasses=bool(values["glasses"]),
        beard=name("beard", BEARDS), clothes=name("clothes", CLOTHES), clothes_colour=colour_name(values["cloth"]),
        background=name("background", BACKGROUNDS),
    )  # fmt: skip


def colour_name(colour: Tensor) -> str:
    """The nearest everyday word for an RGB colour (3,) in 0…1."""
    red, green, blue = colour.tolist()
    high, low = max(red, green, blue), min(red, green, blue)
    if high - low < 0.10:
        return "white" if low > 0.8 else "black" if high < 0.28 else "grey"
    hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
    if 15 <= hue < 50:
        return "beige" if high > 0.75 and high - low < 0.35 else "brown" if high < 0.7 else "orange"
    limits = ((15, "red"), (70, "yellow"), (165, "green"), (195, "teal"), (255, "blue"), (300, "purple"), (340, "pink"))
    return next((word for limit, word in limits if hue < limit), "red")


def describe(controls: Controls, facts: Facts, language: Language, generator: torch.Generator) -> str:
    """One sentence or two about a clip.

    Args:
        controls, facts: what is to be seen.
        language: "en" or "zh".
        generator: picks the wording and which optional clauses are left out.
    Raises: UsageError for another language.
    """
    if language not in ("en", "zh"):
        raise UsageError(f"language={language!r} is not known; use 'en' or 'zh'.")
    words = _Words(generator)
    return _describe_english(controls, facts, words) if language == "en" else _describe_chinese(controls, facts, words)


class _Words:
    """Random choices among phrasings."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def one_of(self, phrases: tuple[str, ...]) -> str:
        return phrases[int(torch.randint(len(phrases), (), generator=self.generator))]

    def maybe(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability


_EN_EXPRESSION = {
    "neutral": ("speaks calmly", "talks to the camera", "is speaking", "speaks with a neutral face"),
    "smiling": ("smiles while talking", "speaks with a warm smile", "is smiling and speaking", "smiles and talks"),
    "sad": ("speaks sadly", "looks sad while talking", "talks with a sad face", "speaks with sad eyes"),
    "surprised": ("speaks in surprise", "looks surprised while talking", "talks with a surprised face"),
    "angry": ("speaks angrily", "looks angry while talking", "talks with an angry frown"),
}
_EN_HEAD = {
    "still": ("keeping the head still", "hardly moving the head", "with the head still"),
    "lively": ("moving the head freely", "with lively movements", "with lively gestures of the head"),
    "nodding": ("nodding", "nodding along", "with a nodding head"),
    "shaking": ("shaking the head", "slowly shaking the head", "with a shaking head"),
    "looking left": ("looking to the left", "turning to the left", "facing left"),
    "looking right": ("looking to the right", "turning to the right", "facing right"),
    "tilting": ("tilting the head", "with the head tilted", "tilting the head to one side"),
}
_EN_CAMERA = {
    "still": ("The camera is still", "Static camera", "Fixed shot"),
    "push in": ("The camera slowly pushes in", "Slow push in", "The camera moves closer, a slow push in"),
    "pull out": ("The camera slowly pulls out", "Slow pull out", "The camera moves back, a slow pull out"),
    "pan left": ("The camera pans left", "Slow pan to the left", "The camera moves left"),
    "pan right": ("The camera pans right", "Slow pan to the right", "The camera moves right"),
}
_EN_BACKGROUND = {
    "gradient": "a plain background", "bokeh": "soft lights in the background", "window": "a bright room with a window",
    "shelves": "bookshelves in the background", "landscape": "green hills in the background",
    "studio": "a studio background", "sunset": "a city at sunset in the background",
}  # fmt: skip


def _describe_english(controls: Controls, facts: Facts, words: _Words) -> str:
    parts = [_person_english(facts, words), words.one_of(_EN_EXPRESSION[controls.expression])]
    if controls.head != "lively" or words.maybe(0.6):
        parts.append(words.one_of(_EN_HEAD[controls.head]))
    sentence = f"{parts[0]} {parts[1]}" + "".join(f", {part}" for part in parts[2:])
    if words.maybe(0.35):
        sentence += f", {_EN_BACKGROUND[facts.background]}"
    if controls.camera == "still" and words.maybe(0.5):
        return sentence + "."
    camera = words.one_of(_EN_CAMERA[controls.camera])
    if words.maybe(0.5):
        return f"{sentence}. {camera}."
    return f"{sentence}, {camera[0].lower()}{camera[1:]}."


def _person_english(facts: Facts, words: _Words) -> str:
    women, men = ("A woman", "A young woman", "A lady"), ("A man", "A young man", "A guy")
    person = words.one_of(women if facts.woman else men)
    details = [_hair_english(facts)] if words.maybe(0.55) else []
    if facts.glasses and words.maybe(0.6):
        details.append("glasses")
    if facts.beard in ("moustache", "goatee", "full") and words.maybe(0.6):
        details.append({"full": "a full beard"}.get(facts.beard, f"a {facts.beard}"))
    if details:
        person += " with " + " and ".join((", ".join(details[:-1]), details[-1]) if len(details) > 1 else details)
    if words.maybe(0.4):
        garment = facts.clothes if facts.clothes != "v-neck" else "v-neck sweater"
        article = "an" if facts.clothes_colour[0] in "aeiou" else "a"
        person += f" in {article} {facts.clothes_colour} {garment}"
    return person


def _hair_english(facts: Facts) -> str:
    if facts.cover != "none":
        return f"a {facts.cover}"
    if facts.hair_style == "bald":
        return "a bald head"
    shape = {"buzz cut": "cropped", "short": "short", "side part": "short", "quiff": "short", "swept fringe": "short",
             "curly": "curly", "bob": "bobbed", "bangs": "long", "long straight": "long", "long wavy": "long wavy",
             "long curly": "long curly"}  # fmt: skip
    worn = {"bun": " in a bun", "ponytail": " in a ponytail", "twin buns": " in two buns", "bangs": " and bangs",
            "afro": " in an afro"}  # fmt: skip
    return f"{shape.get(facts.hair_style, '')} {facts.hair_colour} hair".strip() + worn.get(facts.hair_style, "")


_ZH_EXPRESSION = {
    "neutral": ("平静地说话", "对着镜头说话", "正在讲话", "神情自然地说着"),
    "smiling": ("微笑着说话", "面带微笑地讲话", "一边微笑一边说"),
    "sad": ("悲伤地说话", "神情悲伤地讲述", "带着悲伤的表情说话"),
    "surprised": ("惊讶地说话", "一脸惊讶地讲话", "带着惊讶的表情说"),
    "angry": ("愤怒地说话", "皱着眉愤怒地讲话", "带着愤怒的表情说话"),
}
_ZH_HEAD = {
    "still": ("头部保持不动", "头部几乎不动"),
    "lively": ("头部动作生动", "头部自然地活动"),
    "nodding": ("不时点头", "一边点头"),
    "shaking": ("轻轻摇头", "一边摇头"),
    "looking left": ("转头看向左边", "面向左边"),
    "looking right": ("转头看向右边", "面向右边"),
    "tilting": ("歪着头", "把头歪向一侧"),
}
_ZH_CAMERA = {
    "still": ("镜头固定", "固定镜头"),
    "push in": ("镜头缓慢推进", "镜头慢慢推近"),
    "pull out": ("镜头缓慢拉远", "镜头慢慢拉远"),
    "pan left": ("镜头向左平移", "镜头缓缓左移"),
    "pan right": ("镜头向右平移", "镜头缓缓右移"),
}
_ZH_BACKGROUND = {
    "gradient": "背景简洁", "bokeh": "背景是柔和的光斑", "window": "身后是带窗户的明亮房间",
    "shelves": "背景是书架", "landscape": "背景是绿色的山丘", "studio": "摄影棚背景", "sunset": "背景是夕阳下的城市",
}  # fmt: skip
_ZH_COLOUR = {
    "black": "黑色", "brown": "棕色", "blond": "金色", "auburn": "红褐色", "red": "红色", "grey": "灰色",
    "white": "白色", "blue": "蓝色", "pink": "粉色", "green": "绿色", "purple": "紫色", "beige": "米色",
    "orange": "橙色", "yellow": "黄色", "teal": "青色",
}  # fmt: skip
_ZH_CLOTHES = {
    "t-shirt": "T恤", "v-neck": "V领毛衣", "shirt": "衬衫", "turtleneck": "高领毛衣", "jacket": "外套",
    "blouse": "上衣",
}  # fmt: skip
_ZH_HAIR = {
    "buzz cut": "寸头", "short": "短发", "side part": "短发", "quiff": "短发", "swept fringe": "短发",
    "curly": "卷发", "afro": "爆炸头", "bob": "波波头", "bangs": "齐刘海长发", "long straight": "长直发",
    "long wavy": "长卷发", "long curly": "长卷发", "bun": "丸子头", "ponytail": "马尾", "twin buns": "双丸子头",
}  # fmt: skip
_ZH_BEARD = {"moustache": "小胡子", "goatee": "山羊胡", "full": "络腮胡"}


def _describe_chinese(controls: Controls, facts: Facts, words: _Words) -> str:
    clauses = [_person_chinese(facts, words) + words.one_of(_ZH_EXPRESSION[controls.expression])]
    if controls.head != "lively" or words.maybe(0.6):
        clauses.append(words.one_of(_ZH_HEAD[controls.head]))
    if words.maybe(0.35):
        clauses.append(_ZH_BACKGROUND[facts.background])
    if controls.camera != "still" or words.maybe(0.5):
        camera = words.one_of(_ZH_CAMERA[controls.camera])
        clauses = [camera, *clauses] if words.maybe(0.5) else [*clauses, camera]
    return "，".join(clauses) + "。"


def _person_chinese(facts: Facts, words: _Words) -> str:
    details = []
    if words.maybe(0.55):
        details.append(_hair_chinese(facts))
    if facts.glasses and words.maybe(0.6):
        details.append("戴着眼镜")
    if facts.beard in _ZH_BEARD and words.maybe(0.6):
        details.append(f"留着{_ZH_BEARD[facts.beard]}")
    if words.maybe(0.4):
        details.append(f"穿着{_ZH_COLOUR[facts.clothes_colour]}{_ZH_CLOTHES[facts.clothes]}")
    person = words.one_of(("女人", "女士", "年轻女子") if facts.woman else ("男人", "男士", "年轻男子"))
    return "一位" + "、".join(details) + ("的" if details else "") + person


def _hair_chinese(facts: Facts) -> str:
    if facts.cover != "none":
        return {"beanie": "戴着毛线帽", "headscarf": "戴着头巾"}[facts.cover]
    if facts.hair_style == "bald":
        return "光头"
    return f"留着{_ZH_COLOUR[facts.hair_colour]}{_ZH_HAIR[facts.hair_style]}"
