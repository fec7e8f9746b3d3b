"""Prompts as people write them: any order, full sentences or loose tags, other verbs than `prompts.describe` uses.

The text encoder reads these too, so that a wording which the transformer never saw means the same to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch

from wan_s2v.errors import UsageError
from wan_s2v.training.motion import Controls
from wan_s2v.training.prompts import Facts, Language
from wan_s2v.training.wordings import (
    CHINESE,
    CHINESE_COLOURS,
    CHINESE_FACTS,
    CHINESE_FILLERS,
    CHINESE_TEMPLATES,
    ENGLISH,
    ENGLISH_FACTS,
    ENGLISH_FILLERS,
    ENGLISH_HAIR_COLOURS,
    ENGLISH_TEMPLATES,
    Part,
    gerund,
    third_person,
)

_DEFAULTS = {"expression": "neutral", "head": "lively", "camera": "still"}  # need not be said, as in `describe`


@dataclass(frozen=True)
class FreePrompt:
    """A prompt and which fields of `Controls` and `Facts` it mentions."""

    text: str
    said: frozenset[str]


def describe_freely(
    controls: Controls, facts: Facts, language: Language, generator: torch.Generator, part: Part = "all"
) -> FreePrompt:
    """A prompt in free wording. What `controls` asks for is said, unless it is what a plain prompt means anyway.

    Args:
        part: which wordings of `controls` may be used; with "held out" all three of them are said.
    Raises: UsageError for another language or part.
    """
    for name, value, accepted in (("language", language, get_args(Language)), ("part", part, get_args(Part))):
        if value not in accepted:
            raise UsageError(f"{name}={value!r} is not known; use one of {', '.join(accepted)}.")
    writer = _Writer(language, generator, facts.woman)
    clauses, said = [], set()
    for field, plain in _DEFAULTS.items():
        value = getattr(controls, field)
        if value == plain and part != "held out" and writer.maybe(0.55):
            continue
        clauses.append(writer.direction(field, value, part))
        said.add(field)
    for field, clause in _fact_clauses(facts, writer).items():
        if writer.maybe(0.25):
            clauses.append(clause())
            said |= {field, "clothes_colour"} if field == "clothes" else {field}
    fillers = ENGLISH_FILLERS if language == "en" else CHINESE_FILLERS
    clauses += [writer.fill(writer.one_of(fillers)) for _ in range(writer.number(3))]
    if not clauses or writer.maybe(0.3):
        clauses.append(writer.fill("{woman}"))
    return FreePrompt(writer.join(clauses), frozenset(said | ({"woman"} if writer.told_sex else set())))


class _Writer:
    """Random choices for one prompt, which calls one person by one name."""

    def __init__(self, language: Language, generator: torch.Generator, woman: bool) -> None:
        self.language, self.generator = language, generator
        self.facts = ENGLISH_FACTS if language == "en" else CHINESE_FACTS
        self.names_sex, self.told_sex = self.maybe(0.8), False
        if self.names_sex:
            self.person = self.one_of(self.facts["woman" if woman else "man"])
            names = ("she", "her", "她") if woman else ("he", "his", "他")
        else:
            self.person = self.one_of(("person", "speaker") if language == "en" else ("人", "人物", "主播"))
            names = (self.one_of(("the person", "the speaker", "someone")), "the", "人物")
        self.she, self.her, self.she_chinese = names
        if language == "en" and self.maybe(0.3):
            self.she = self.one_of(("the ", "a ")) + self.person

    def number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def one_of(self, options: tuple[str, ...]) -> str:
        return options[self.number(len(options))]

    def maybe(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def fact(self, name: str) -> str:
        return self.one_of(self.facts[name])

    def fill(self, template: str, x: str = "") -> str:
        """A template about this person; `x` is a wording, of a verb in its base form."""
        named = any(mark in template + x for mark in ("{she}", "{her}", "{woman}"))
        self.told_sex |= self.names_sex and named
        x = x.format(her=self.her)
        if self.language == "zh":
            return template.format(she=self.she_chinese, woman=self.person, x=x)
        forms = {"v": x, "vs": third_person(x), "ing": gerund(x)} if x else {}
        return template.format(she=self.she, woman=self.person, x=x, **forms)

    def direction(self, field: str, value: str, part: Part) -> str:
        tables, templates = (ENGLISH, ENGLISH_TEMPLATES) if self.language == "en" else (CHINESE, CHINESE_TEMPLATES)
        entries = tables[field][value].of_part(part)
        kinds = zip(("verbs", "adjectives", "clauses"), entries.kinds(), strict=True)
        choices = [(kind, text) for kind, texts in kinds for text in texts]
        kind, text = choices[self.number(len(choices))]
        special = f"{field} {kind}"
        return self.fill(self.one_of(templates[special if special in templates else kind]), text)

    def join(self, clauses: list[str]) -> str:
        order = torch.randperm(len(clauses), generator=self.generator).tolist()
        text = clauses[order[0]]
        for index in order[1:]:
            text += self._link() + clauses[index]
        if self.language == "en" and self.maybe(0.6):
            text = text[:1].upper() + text[1:]
        return text + self.one_of(("", "." if self.language == "en" else "。"))

    def _link(self) -> str:
        if self.language == "zh":
            return self.one_of(("，", "，", "，", "。", "、", " ", ""))
        return self.one_of((", ", ", ", ", ", ", ", ". ", ". ", " and ", ", and ", ", while ", " ", "; "))


def _fact_clauses(facts: Facts, writer: _Writer) -> dict[str, Callable[[], str]]:
    """How each fact that can be said is said."""
    clauses: dict[str, Callable[[], str]] = {
        "background": lambda: writer.fact(facts.background),
        "clothes": lambda: _clothes(facts, writer),
    }
    if facts.cover != "none":
        clauses["cover"] = lambda: writer.fact(facts.cover)
    elif facts.hair_style == "bald":
        clauses["hair_style"] = lambda: writer.fact("bald")
    else:
        clauses["hair_colour"] = lambda: _hair(facts, writer)
    if facts.glasses:
        clauses["glasses"] = lambda: writer.fact("glasses")
    if facts.beard in writer.facts:
        clauses["beard"] = lambda: writer.fact(facts.beard)
    return clauses


def _clothes(facts: Facts, writer: _Writer) -> str:
    garment, colour = writer.fact(facts.clothes), facts.clothes_colour
    garment = f"{colour} {garment}" if writer.language == "en" else f"{CHINESE_COLOURS[colour]}色{garment}"
    return writer.fact("wear").format(x=garment)


def _hair(facts: Facts, writer: _Writer) -> str:
    colour = facts.hair_colour
    length = "long" if facts.hair_style.startswith("long") or facts.hair_style == "bangs" else ""
    if facts.hair_style in ("buzz cut", "short", "side part", "quiff", "swept fringe"):
        length = "short"
    if writer.language == "zh":
        return writer.fact("hair").format(
            x=f"{CHINESE_COLOURS[colour]}色" + (writer.fact(length) if length else "头发")
        )
    colour = ENGLISH_HAIR_COLOURS.get(colour, colour) if writer.maybe(0.5) else colour
    shape = writer.fact(length) + " " if length and writer.maybe(0.5) else ""
    return writer.fact("hair").format(x=shape + colour)
