"""The sounds that espeak-ng can emit in the languages of `texts`, and the classes an audio encoder is taught.

espeak-ng names a sound with one to five characters ("a", "tɕh", "ɔːɹ", "ts.h", "yɛ"). Here each name is cut into
letters, and every letter has a class; a name with a letter that has none is an error in `strict` mode, because one
missing letter (the Japanese "ä") silently takes away a quarter of all Japanese sounds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wan_s2v.errors import UsageError
from wan_s2v.training.speech import SILENCE, Phoneme

VOWELS = tuple("aɑɐʌæɒɔoʊuʉyʏøœeɛiɪɨɯəɚɜɤ")
CONSONANTS = tuple("pbtdkɡʔmnɲŋɴfvθðszʃʒɕʑʂʐçʝxɣhʁrɾɹlʎjɥwβɸ")
PHONEMES: tuple[str, ...] = (SILENCE, *VOWELS, *CONSONANTS)

# Spellings of espeak-ng that stand for another letter: its own ASCII marks, and sounds told apart by nobody's lips.
_WRITTEN_AS = (
    ("ç", "ç"),
    ("s.", "ʂ"),
    ("z.", "ʐ"),
    ("i.", "ɨ"),
    ("i̪", "ɨ"),
    ("ᵻ", "ɨ"),
    ("g", "ɡ"),
    ("χ", "x"),
    ("ɽ", "ɾ"),
    ("ʍ", "w"),
    ("ʲ", "j"),
    ("ɝ", "ɚ"),
    ("ɫ", "l"),
    ("ʋ", "v"),
    ("ɱ", "m"),
    ("ɦ", "h"),
    ("ʀ", "ʁ"),
)
_LONG_MARKS = "ː:"
_IGNORED_MARKS = "-ʰᵝʷˑ̯"
_CLASS_OF = {letter: index for index, letter in enumerate(PHONEMES)}
_LONG_WEIGHT = 1.6
_FRICATIVES = frozenset("szʃʒɕʑʂʐfvx")
_PLOSIVES = frozenset("ptkbdɡ")


@dataclass(frozen=True)
class Segment:
    """One letter of a sound with its own span; `release_s` as in `speech.Phoneme`."""

    letter: str
    start_s: float
    end_s: float
    stressed: bool
    release_s: float | None


@lru_cache(maxsize=4096)
def split_ipa(ipa: str, *, strict: bool = False) -> tuple[tuple[str, float], ...]:
    """Letters of a sound with their share of its time, which sum to 1: "aɪ" -> a, ɪ; "dʒ" -> d, ʒ; "ts.h" -> t, ʂ.

    A nasal mark, tone or syllable mark changes no lips and is dropped; so is aspiration, which is part of the plosive.

    Raises: UsageError in `strict` mode if a letter is not one of PHONEMES; otherwise it counts as "ə".
    """
    if ipa == SILENCE:
        return ((SILENCE, 1.0),)
    text = unicodedata.normalize("NFD", ipa)
    for written, letter in _WRITTEN_AS:
        text = text.replace(unicodedata.normalize("NFD", written), letter)
    letters: list[str] = []
    weights: list[float] = []
    for character in text:
        if character in _LONG_MARKS or (letters and character == letters[-1]):
            weights[-1:] = [_LONG_WEIGHT] if weights else []
        elif character in _IGNORED_MARKS or unicodedata.category(character) == "Mn" or (character == "h" and letters):
            continue
        else:
            letters.append(_known_letter(character, ipa, strict))
            weights.append(1.0)
    if len(letters) > 1 and letters[0] in _PLOSIVES and letters[1] in _FRICATIVES:
        weights[1] = 1.8
    total = sum(weights)
    return tuple((letter, weight / total) for letter, weight in zip(letters, weights, strict=True))


def _known_letter(character: str, ipa: str, strict: bool) -> str:
    if character in _CLASS_OF:
        return character
    if strict:
        raise UsageError(
            f"Sound {ipa!r} has the letter {character!r} (U+{ord(character):04X}), which has no class. "
            "Add it to wan_s2v/training/ipa.py and visemes.py."
        )
    return "ə"


def segments(phonemes: Sequence[Phoneme], *, strict: bool = False) -> list[Segment]:
    """Sounds cut into letters, in order: diphthongs into two vowels, affricates into closure and friction.

    Raises: UsageError as `split_ipa`.
    """
    found: list[Segment] = []
    for phoneme in phonemes:
        letters = split_ipa(phoneme.ipa, strict=strict)
        start_s = phoneme.start_s
        for index, (letter, share) in enumerate(letters):
            end_s = phoneme.end_s if index == len(letters) - 1 else start_s + share * (phoneme.end_s - phoneme.start_s)
            if index == 0 and len(letters) > 1 and phoneme.release_s is not None:
                # In an affricate the friction starts at the burst.
                end_s = max(end_s if letter not in _PLOSIVES else phoneme.release_s, start_s)
            found.append(Segment(letter, start_s, end_s, phoneme.stressed, phoneme.release_s if index == 0 else None))
            start_s = end_s
    return found


def frame_labels(
    phonemes: Sequence[Phoneme], num_frames: int, hop: float = 320 / 16_000, *, strict: bool = False
) -> NDArray[np.int64]:
    """Class of the sound in the middle of each frame.

    Args:
        hop: seconds a frame; the default is wav2vec2's 50 frames a second.
    Returns: (num_frames,) int64 indices into PHONEMES; 0 is silence, also before the first and after the last sound.
    Raises: UsageError as `split_ipa`.
    """
    found = segments(phonemes, strict=strict)
    if not found:
        return np.zeros(num_frames, np.int64)
    centres = (np.arange(num_frames) + 0.5) * hop
    starts = np.array([segment.start_s for segment in found])
    classes = np.array([_CLASS_OF[segment.letter] for segment in found])
    index = np.searchsorted(starts, centres, side="right") - 1
    inside = (index >= 0) & (centres < found[-1].end_s)
    return np.where(inside, classes[np.maximum(index, 0)], 0)
