"""Speech with exactly known phoneme times, from espeak-ng, to train the embedded model's audio encoder.

Nothing at inference imports this module. It knows sound and phonemes, not mouths; `espeak` knows the library.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import soxr
from numpy.typing import NDArray

from wan_s2v.errors import UsageError
from wan_s2v.espeak import Espeak, Spoken

SAMPLE_RATE = 16_000
SILENCE = "_"

# espeak-ng's own names; every accent of a language has the same text.
ACCENTS: dict[str, tuple[str, ...]] = {
    "en": ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
    "cmn": ("cmn",),
    "ja": ("ja",),
    "de": ("de",),
    "es": ("es", "es-419"),
    "fr": ("fr", "fr-be", "fr-ch"),
    "pt": ("pt-br", "pt"),
    "it": ("it",),
}
HELD_OUT_LANGUAGES = ("it",)
HELD_OUT_VOICES = ("m7", "f4", "Alicia", "Hugo", "Marco", "adam", "david", "shelby", "klatt3", "edward2")
TRAIN_VOICES = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m8",
    "f1",
    "f2",
    "f3",
    "f5",
    "Alex",
    "Andrea",
    "Andy",
    "Annie",
    "AnxiousAndy",
    "Denis",
    "Diogo",
    "Gene",
    "Gene2",
    "Henrique",
    "Jacky",
    "Lee",
    "Mario",
    "Michael",
    "Mike",
    "Nguyen",
    "Reed",
    "RicishayMax",
    "RicishayMax2",
    "Storm",
    "Tweaky",
    "anika",
    "anikaRobot",
    "announcer",
    "antonio",
    "aunty",
    "belinda",
    "benjamin",
    "boris",
    "caleb",
    "croak",
    "ed",
    "edward",
    "fast",
    "grandma",
    "grandpa",
    "gustave",
    "ian",
    "iven",
    "iven2",
    "iven3",
    "iven4",
    "john",
    "kaukovalta",
    "klatt",
    "klatt2",
    "klatt4",
    "klatt5",
    "klatt6",
    "linda",
    "marcelo",
    "max",
    "michel",
    "miguel",
    "mike2",
    "norbert",
    "pablo",
    "paul",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "robosoft",
    "robosoft2",
    "robosoft4",
    "robosoft5",
    "sandro",
    "steph",
    "steph2",
    "steph3",
    "travis",
    "victor",
    "whisper",
    "whisperf",
    "zac",
)

_SHORTEST_HOLD_S = 0.03
_VOICELESS_PLOSIVES = frozenset("ptkcʈqʔ")
_VOICED_PLOSIVES = frozenset("bdɡgɟɖɢ")
_RELEASED_LATE = frozenset("mnɲŋɱɳɴlɫʎɭɹrɾʁʀjwɥɻʋɰ")
_VOWELS = frozenset("aäeiouyɑɐɒæʌəɚɛɜɝɞɘɤɨɪɔɵøœɶʉʊʏɯᵻãõũĩ")
_FRONT_GLIDES = frozenset("iɪyʏː")


@dataclass(frozen=True)
class Voice:
    """One speaker: espeak-ng's accent (its voice name) and the variant that changes timbre, "" for none."""

    language: str
    accent: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}" if self.variant else self.accent


@dataclass(frozen=True)
class Phoneme:
    """One sound: IPA without stress marks (`SILENCE` for a pause), its span in seconds, primary or secondary stress.

    `release_s` is when the closure of a plosive opens (its burst); None where the sound is held to its end.
    """

    ipa: str
    start_s: float
    end_s: float
    stressed: bool = False
    release_s: float | None = None

    def retimed(self, time_map: Callable[[float], float]) -> Phoneme:
        """The same sound with every time sent through `time_map`."""
        release = None if self.release_s is None else time_map(self.release_s)
        return replace(self, start_s=time_map(self.start_s), end_s=time_map(self.end_s), release_s=release)


@dataclass(frozen=True)
class Utterance:
    """waveform: (S,) float32 at 16 kHz in -1...1; phonemes in order, without gaps, from 0 to the end."""

    waveform: NDArray[np.float32]
    phonemes: tuple[Phoneme, ...]

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


# espeak-ng 1.52 crashes where the low voice's wide pitch range takes a tone of Mandarin below zero.
_CRASHING = {"cmn": frozenset({"rob"})}


class Synthesizer:
    """espeak-ng as a function from text to a waveform with phoneme times.

    All instances share one library, which must not be used from several threads; the same arguments give the same
    samples.
    """

    def __init__(self) -> None:
        self._espeak = Espeak()

    def voices(self, language: str) -> list[Voice]:
        """Every accent of `language` in every variant that the installed data has, held-out ones included.

        Raises: UsageError if the language is not one of ACCENTS.
        """
        if language not in ACCENTS:
            raise UsageError(f"No voices for language {language!r}. Languages: {', '.join(ACCENTS)}.")
        everyone = (*TRAIN_VOICES, *HELD_OUT_VOICES)
        spoken = self._espeak.variants() - _CRASHING.get(language, frozenset())
        variants = [variant for variant in everyone if variant in spoken]
        return [Voice(language, accent, variant) for accent in ACCENTS[language] for variant in variants]

    def synthesize(
        self, text: str, voice: Voice, *, rate: int = 165, pitch: int = 50, pitch_range: int = 50, volume: int = 60
    ) -> Utterance:
        """Speak plain text or SSML.

        Args:
            rate: words a minute, 80...450. pitch, pitch_range: 0...99, 50 is the voice's own. volume: 0...200;
                some variants clip above 60.
        Raises: UsageError if a value is out of range, the voice is not installed, or the text holds nothing to say.
        """
        for name, value, low, high in (
            ("rate", rate, 80, 450),
            ("pitch", pitch, 0, 99),
            ("pitch_range", pitch_range, 0, 99),
            ("volume", volume, 0, 200),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name}={value} is not accepted. Give a number from {low} to {high}.")
        spoken = self._espeak.speak(
            text, voice.name, rate=rate, pitch=pitch, pitch_range=pitch_range, volume=volume, is_ssml=True
        )
        return _utterance(spoken)


def _utterance(spoken: Spoken) -> Utterance:
    sounds = _mend_boundaries(spoken.samples, spoken.events, spoken.sample_rate)
    waveform = soxr.resample(spoken.samples.astype(np.float32) / 32768, spoken.sample_rate, SAMPLE_RATE)
    scale = 1 / spoken.sample_rate
    phonemes = tuple(
        Phoneme(
            _plain(sound.name) or SILENCE,
            sound.start * scale,
            sound.end * scale,
            stressed="ˈ" in sound.name or "ˌ" in sound.name,
            release_s=None if sound.release is None else sound.release * scale,
        )
        for sound in sounds
    )
    return Utterance(waveform.astype(np.float32), phonemes)


@dataclass(frozen=True)
class _Sound:
    """A sound in samples of the library's rate; `name` still has its stress mark and is "" for a pause."""

    name: str
    start: int
    end: int
    release: int | None = None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("ˈ", "").replace("ˌ", ""))


def _mend_boundaries(samples: NDArray[np.int16], events: list[tuple[int, str]], rate: int) -> list[_Sound]:
    """Sounds with their true spans, where espeak-ng's events are late or nameless.

    Rules of espeak-ng's synthesize.c: the silent hold of a voiceless plosive is played before its event, which marks
    the burst; a vowel after a nasal or liquid gets its event after the transition, a third of the consonant's length
    late, and a voiced plosive opens as long before the vowel's event (both measured on eight voices). A language
    switch has an event of its own, "(en)"; its span belongs to the sound that follows.
    """
    events = [event for event in sorted(events, key=lambda event: event[0]) if not event[1].startswith("(")]
    names = [_plain(name) for _, name in events]
    starts = [min(sample, len(samples)) for sample, _ in events]
    ends = [*starts[1:], len(samples)]
    mended = list(starts)
    releases: list[int | None] = [None] * len(events)
    for index, name in enumerate(names):
        before = names[index - 1] if index else ""
        if name[:1] in _VOICELESS_PLOSIVES:
            releases[index] = starts[index] + round(0.005 * rate)
            longest_hold = starts[index] - round(0.06 * rate)
            earliest = starts[index - 1] if index else 0
            mended[index] = (
                _hold_start(samples, starts[index], earliest, rate) if before else max(earliest, longest_hold)
            )
        elif name[:1] in _VOICED_PLOSIVES:
            releases[index] = ends[index] - round(0.3 * (ends[index] - starts[index]))
        elif name[:1] in _VOWELS and before[-1:] in _RELEASED_LATE:
            mended[index] -= round(0.3 * (starts[index] - starts[index - 1]))
    sounds = [_Sound("", 0, mended[0] if mended else len(samples))]
    for (_, name), start, end, release in zip(events, mended, [*mended[1:], len(samples)], releases, strict=True):
        sounds.append(_Sound(name, start, end, None if release is None else min(release, end)))
    return _name_voiced_gaps(samples, [sound for sound in sounds if sound.end > sound.start])


def _name_voiced_gaps(samples: NDArray[np.int16], sounds: list[_Sound]) -> list[_Sound]:
    """Give spans without a name that are not silent to the sound they are: the start of a trill, or a glide.

    espeak-ng leaves two audible things nameless: the short vowel that opens an Italian r, and the [j] between i and
    another vowel.
    """
    limit = 0.02 * np.abs(samples.astype(np.int32)).max(initial=1)
    named: list[_Sound] = []
    opened: int | None = None
    for index, sound in enumerate(sounds):
        following = sounds[index + 1].name if index + 1 < len(sounds) else ""
        span = samples[sound.start : sound.end].astype(np.float64)
        if not sound.name and following and len(span) > 200 and np.sqrt(np.mean(span**2)) > limit:
            if not named or named[-1].name[-1:] not in _FRONT_GLIDES:
                opened = sound.start
                continue
            sound = replace(sound, name="j")
        named.append(sound if opened is None else replace(sound, start=opened))
        opened = None
    return named


def _hold_start(samples: NDArray[np.int16], event: int, previous: int, rate: int) -> int:
    """Where the quiet before a plosive's burst begins: at most 120 ms back, and leaving the sound before a quarter."""
    floor = max(previous + (event - previous) // 4, event - round(0.12 * rate))
    loudness = np.abs(samples[floor:event].astype(np.int32))
    limit = max(60, int(0.03 * np.abs(samples[previous:event]).max(initial=0)))
    loud = np.flatnonzero(loudness > limit)
    quiet = floor + int(loud[-1]) + 1 if len(loud) else floor
    # Voices with an echo are never quiet; the hold is there all the same.
    return max(floor, min(quiet, event - round(_SHORTEST_HOLD_S * rate)))
