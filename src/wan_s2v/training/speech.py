"""Speech with exactly known phoneme times, from espeak-ng, to train the embedded model's audio encoder.

The library is reached through ctypes: the PyPI wheel `espeakng-loader` (the `train` extra), else the system's
libespeak-ng. Nothing at inference imports this module. It knows sound and phonemes, not mouths.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from wan_s2v.errors import UsageError

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

_SYNCHRONOUS = 2
# Without the last flag the library ends the process where it cannot read its data.
_PHONEME_EVENTS_AS_IPA = 1 | 2 | 0x8000
_UTF8_SSML = 1 | 0x10
_EVENT_LIST_END, _EVENT_PHONEME = 0, 7
_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4
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


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of espeak-ng's public header speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


# espeak-ng 1.52 crashes where the low voice's wide pitch range takes a tone of Mandarin below zero.
_CRASHING = {"cmn": frozenset({"rob"})}

# The handle of this process, if one is open.
_opened: list[ctypes.CDLL] = []

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@cache
def find_library() -> tuple[str, str | None]:
    """Path of libespeak-ng and of its data folder (None: the library knows its own).

    Raises: UsageError if neither the wheel nor a system library is installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        system = ctypes.util.find_library("espeak-ng")
        if system is None:
            raise UsageError(
                "Training speech needs espeak-ng, which is not installed. Run: pip install wan-s2v[train]."
            ) from None
        return system, None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


@cache
def _files_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir())


class Synthesizer:
    """espeak-ng as a function from text to a waveform with phoneme times.

    The library keeps global state, so all instances share one handle, which must not be used from several threads.
    The same arguments give the same samples, whatever was spoken before: the library is loaded afresh for each
    utterance (0.5 ms), because its pitch flutter and noise otherwise go on where the last utterance stopped.
    """

    def __init__(self) -> None:
        self._library_path, self._data_path = find_library()
        self._callback = _Callback(self._receive)
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self._load()

    def voices(self, language: str) -> list[Voice]:
        """Every accent of `language` in every variant that the installed data has, held-out ones included.

        Raises: UsageError if the language is not one of ACCENTS.
        """
        if language not in ACCENTS:
            raise UsageError(f"No voices for language {language!r}. Languages: {', '.join(ACCENTS)}.")
        everyone = (*TRAIN_VOICES, *HELD_OUT_VOICES)
        spoken = self._variants() - _CRASHING.get(language, frozenset())
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
        self._chunks, self._events = [], []
        library = self._load()
        # A variant that does not exist would be left out without a word.
        known = voice.variant in ("", *self._variants())
        if not known or library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UsageError(f"espeak-ng has no voice {voice.name!r}. Take one that Synthesizer.voices() lists.")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, pitch_range), (_VOLUME, volume)):
            library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8_SSML, None, None)
        library.espeak_Synchronize()
        if not self._chunks or not any(name for _, name in self._events):
            raise UsageError(f"Text {text!r} holds nothing that espeak-ng can say. Give words of the voice's language.")
        return self._utterance(np.concatenate(self._chunks), self._events)

    def _load(self) -> ctypes.CDLL:
        """A library without a past: two open handles would be one library that keeps its state."""
        if _opened and sys.platform != "win32":
            import _ctypes

            _opened[0].espeak_Terminate()
            _ctypes.dlclose(_opened.pop()._handle)
        library = ctypes.CDLL(self._library_path)
        _opened[:] = [library]
        data = None if self._data_path is None else self._data_path.encode()
        self._source_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS_AS_IPA)
        if self._source_rate <= 0:
            raise UsageError(
                f"espeak-ng cannot read its data in {self._data_path}. Its path may have 150 characters; "
                "reinstall in a shorter one: pip install wan-s2v[train]."
            )
        library.espeak_SetSynthCallback(self._callback)
        if hasattr(library, "espeak_ng_SetRandSeed"):
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            library.espeak_ng_SetRandSeed(1)
        return library

    def _variants(self) -> frozenset[str]:
        path = ctypes.c_char_p()
        # Not a handle of its own: another instance may have closed it by loading the library afresh.
        _opened[0].espeak_Info(ctypes.byref(path))
        return _files_in(Path((path.value or b"").decode()) / "voices" / "!v")

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                # The 8 bytes need not end in a zero and may stop inside a character.
                name = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0].decode(errors="ignore")
                self._events.append((event.sample, name))
            index += 1
        return 0

    def _utterance(self, samples: NDArray[np.int16], events: list[tuple[int, str]]) -> Utterance:
        sounds = _mend_boundaries(samples, events, self._source_rate)
        waveform = soxr.resample(samples.astype(np.float32) / 32768, self._source_rate, SAMPLE_RATE)
        scale = 1 / self._source_rate
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
