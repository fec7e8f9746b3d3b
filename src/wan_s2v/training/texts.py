"""Endless text to speak: sentences from patterns, pseudo-words, numbers, names, questions and pauses.

Nothing is copied from a corpus. A sentence belongs to exactly one split, decided by a hash of its letters, so that
training never speaks a sentence that the held-out set may contain.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

from numpy.random import Generator

from wan_s2v.errors import UsageError
from wan_s2v.training.phrases import PHRASES, Phrases

Split = Literal["train", "held-out"]

LANGUAGES = tuple(PHRASES)

# Characters spoken in a second at the default rate, to turn a wanted duration into an amount of text.
_CHARACTERS_PER_SECOND = {"cmn": 4.2, "ja": 7.5}
_ONE_IN_HELD_OUT = 8
_PSEUDO_SHARE = 0.45
_SILENCE_SHARE = 0.18


def is_held_out(sentence: str) -> bool:
    """Whether a sentence belongs to the held-out split: one in eight, whatever its case and punctuation."""
    letters = re.sub(r"\W+", "", sentence).lower()
    return zlib.crc32(letters.encode()) % _ONE_IN_HELD_OUT == 0


def random_text(language: str, generator: Generator, seconds_hint: float, split: Split = "train") -> str:
    """Text that takes about `seconds_hint` seconds to speak at a middling rate.

    Sentences of the grammar and pseudo-words alternate at random; about one gap in six is an explicit silence of
    0.3 to 1.5 s, written as `<break time="...ms"/>`, which `speech.Synthesizer` understands.

    Raises: UsageError if the language has no phrases.
    """
    phrases = _phrases(language)
    rate = _CHARACTERS_PER_SECOND.get(language, 13.0)
    parts: list[str] = []
    length = 0
    while length < seconds_hint * rate:
        sentence = random_sentence(language, generator, split)
        parts.append(sentence)
        length += len(sentence)
        if generator.random() < _SILENCE_SHARE:
            milliseconds = int(generator.integers(300, 1500))
            parts.append(f'<break time="{milliseconds}ms"/>')
            length += round(milliseconds / 1000 * rate)
    return (phrases.space or " ").join(parts)


def random_sentence(language: str, generator: Generator, split: Split = "train") -> str:
    """One sentence or one run of pseudo-words with its punctuation, drawn from the given split."""
    phrases = _phrases(language)
    while True:
        if generator.random() < _PSEUDO_SHARE:
            sentence = _pseudo_sentence(phrases, generator)
        else:
            sentence = _grammar_sentence(phrases, generator)
        if is_held_out(sentence) == (split == "held-out"):
            return sentence


def pseudo_word(language: str, generator: Generator) -> str:
    """One to four syllables that the language's spelling allows."""
    return _pseudo_word(_phrases(language), generator)


def _phrases(language: str) -> Phrases:
    if language not in PHRASES:
        raise UsageError(f"There is no training text for language {language!r}. Languages: {', '.join(LANGUAGES)}.")
    return PHRASES[language]


def _pick(options: tuple[str, ...], generator: Generator) -> str:
    return options[int(generator.integers(len(options)))]


def _grammar_sentence(phrases: Phrases, generator: Generator) -> str:
    kind = generator.random()
    if kind < 0.12:
        return _pick(phrases.sentences, generator) + phrases.stop
    patterns, mark = (phrases.questions, phrases.question) if kind < 0.32 else (phrases.patterns, phrases.stop)
    slots = {
        "subject": phrases.subjects,
        "verb": phrases.verbs,
        "object": phrases.objects,
        "place": phrases.places,
        "time": phrases.times,
        "name": phrases.names,
    }

    def fill(match: re.Match[str]) -> str:
        slot = match.group(1)
        return _number(generator) if slot == "number" else _pick(slots[slot], generator)

    return re.sub(r"\{(\w+)\}", fill, _pick(patterns, generator)) + mark


def _number(generator: Generator) -> str:
    digits = int(generator.integers(1, 5))
    return str(int(generator.integers(10 ** (digits - 1), 10**digits)))


def _pseudo_sentence(phrases: Phrases, generator: Generator) -> str:
    words = [_pseudo_word(phrases, generator) for _ in range(int(generator.integers(3, 10)))]
    for index in range(len(words) - 1):
        if generator.random() < 0.12:
            words[index] += phrases.comma
    return phrases.space.join(words) + (phrases.question if generator.random() < 0.15 else phrases.stop)


def _pseudo_word(phrases: Phrases, generator: Generator) -> str:
    syllables = int(generator.integers(1, 5))
    return "".join(
        _pick(phrases.onsets, generator) + _pick(phrases.nuclei, generator) + _pick(phrases.codas, generator)
        for _ in range(syllables)
    )
