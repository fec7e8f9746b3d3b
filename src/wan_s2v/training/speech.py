"""Speech with exactly known phoneme times, from espeak-ng, to train the embedded model's audio encoder.

The library is reached through ctypes: the PyPI wheel `espeakng-loader` (the `train` extra), else the system's
libespeak-ng. Nothing at inference imports this module. It knows sound and phonemes, not mouths.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import unicodedata
from dataclasses import dataclass
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
TRAIN_VOICES = tuple(
    "m1 m2 m3 m4 m5 m6 m8 f1 f2 f3 f5 Alex Andrea Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Jacky Lee "
    "Mario Michael Mike Nguyen Reed RicishayMax RicishayMax2 Storm Tweaky anika anikaRobot announcer antonio aunty "
    "belinda benjamin boris caleb croak ed edward fast grandma grandpa gustave ian iven iven2 iven3 iven4 john "
    "kaukovalta klatt klatt2 klatt4 klatt5 klatt6 linda marcelo max michel miguel mike2 norbert pablo paul pedro quincy "
    "rob robert robosoft robosoft2 robosoft4 robosoft5 sandro steph steph2 steph3 travis victor whisper whisperf "
    "zac".split()
)

_SYNCHRONOUS = 2
_PHONEME_EVENTS_AS_IPA = 1 | 2
_UTF8_SSML = 1 | 0x10
_EVENT_LIST_END, _EVENT_PHONEME = 0, 7
_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4
_PLOSIVES = frozenset("pbtdkɡgcɟʈɖqɢʔ")
_RELEASED_LATE = frozenset("mnɲŋɱɳɴlɫʎɭɹrɾʁʀjwɥɻʋɰ")
_VOWELS = frozenset("aeiouyɑɐɒæʌəɚɛɜɝɞɘɤɨɪɔɵøœɶʉʊʏɯᵻ")


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
    """One sound: IPA without stress marks (`SILENCE` for a pause), its span in seconds, primary or secondary stress."""

    ipa: str
    start_s: float
    end_s: float
    stressed: bool = False


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


class Synthesizer:
    """espeak-ng as a function from text to a waveform with phoneme times.

    The library keeps global state, so there is one handle in a process and it must not be used from several threads.
    The same arguments give the same samples, whatever was spoken before: the library is loaded afresh for each
    utterance (0.5 ms), because its pitch flutter and noise otherwise go on where the last utterance stopped.
    """

    def __init__(self) -> None:
        self._library_path, self._data_path = find_library()
        self._callback = _Callback(self._receive)
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self._library = self._load()

    def voices(self, language: str) -> list[Voice]:
        """Every accent of `language` in every variant that the installed data has, held-out ones included.

        Raises: UsageError if the language is not one of ACCENTS.
        """
        if language not in ACCENTS:
            raise UsageError(f"No voices for language {language!r}. Languages: {', '.join(ACCENTS)}.")
        installed = {path.name for path in (self._data_folder() / "voices" / "!v").iterdir()}
        variants = [variant for variant in (*TRAIN_VOICES, *HELD_OUT_VOICES) if variant in installed]
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
            ("rate", rate, 80, 450), ("pitch", pitch, 0, 99), ("pitch_range", pitch_range, 0, 99),
            ("volume", volume, 0, 200),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name}={value} is not accepted. Give a number from {low} to {high}.")
        self._reload()
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UsageError(f"espeak-ng has no voice {voice.name!r}. Take one that Synthesizer.voices() lists.")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, pitch_range), (_VOLUME, volume)):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8_SSML, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise UsageError(f"Text {text!r} holds nothing that espeak-ng can say. Give words of the voice's language.")
        return self._utterance(np.concatenate(self._chunks), self._events)

    def _load(self) -> ctypes.CDLL:
        library = ctypes.CDLL(self._library_path)
        data = None if self._data_path is None else self._data_path.encode()
        self._source_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS_AS_IPA)
        if self._source_rate <= 0:
            raise UsageError(f"espeak-ng cannot read its data in {self._data_path}. Reinstall: pip install wan-s2v[train].")
        library.espeak_SetSynthCallback(self._callback)
        if hasattr(library, "espeak_ng_SetRandSeed"):
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            library.espeak_ng_SetRandSeed(1)
        return library

    def _reload(self) -> None:
        self._chunks, self._events = [], []
        if sys.platform == "win32":
            return
        import _ctypes

        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)
        self._library = self._load()

    def _data_folder(self) -> Path:
        if self._data_path is not None:
            return Path(self._data_path)
        path = ctypes.c_char_p()
        self._library.espeak_Info(ctypes.byref(path))
        return Path((path.value or b"").decode())

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
        bounds = _mend_boundaries(samples, events, self._source_rate)
        waveform = soxr.resample(samples.astype(np.float32) / 32768, self._source_rate, SAMPLE_RATE)
        phonemes = tuple(
            Phoneme(_plain(name) or SILENCE, start / self._source_rate, end / self._source_rate, "ˈ" in name or "ˌ" in name)
            for name, start, end in bounds
        )
        return Utterance(waveform.astype(np.float32), phonemes)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("ˈ", "").replace("ˌ", ""))


def _mend_boundaries(
    samples: NDArray[np.int16], events: list[tuple[int, str]], rate: int
) -> list[tuple[str, int, int]]:
    """(IPA, first sample, end sample) of each sound, where espeak-ng's events are late or nameless.

    Rules of espeak-ng's synthesize.c: the silent hold of a plosive is played before its event, and a vowel after a
    nasal or liquid gets its event after the transition, a third of the consonant's length late (measured). A
    language switch has an event of its own, "(en)"; its span belongs to the sound that follows.
    """
    events = [event for event in sorted(events, key=lambda event: event[0]) if not event[1].startswith("(")]
    starts = [min(sample, len(samples)) for sample, _ in events]
    names = [_plain(name) for _, name in events]
    mended = list(starts)
    for index, name in enumerate(names):
        if not name or index == 0:
            continue
        if name[0] in _PLOSIVES:
            hold = _hold_start(samples, starts[index], starts[index - 1], rate)
            mended[index] = max(starts[index - 1], starts[index] - round(0.06 * rate)) if not names[index - 1] else hold
        elif name[0] in _VOWELS and names[index - 1][-1:] in _RELEASED_LATE:
            mended[index] -= round(0.3 * (starts[index] - starts[index - 1]))
    ends = [*mended[1:], len(samples)]
    bounds = [("", 0, mended[0] if mended else len(samples))]
    bounds += [(name, start, end) for (_, name), start, end in zip(events, mended, ends, strict=True)]
    return _name_voiced_gaps(samples, [(name, start, end) for name, start, end in bounds if end > start])


def _name_voiced_gaps(samples: NDArray[np.int16], bounds: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Give spans without a name that are not silent to the sound they are: the start of a trill, or a glide.

    espeak-ng leaves two audible things nameless: the short vowel that opens an Italian r, and the [j] between i and
    another vowel.
    """
    limit = 0.02 * np.abs(samples).max(initial=1)
    named: list[tuple[str, int, int]] = []
    trill_start: int | None = None
    for index, (name, start, end) in enumerate(bounds):
        following = _plain(bounds[index + 1][0]) if index + 1 < len(bounds) else ""
        audible = not name and end - start > 200 and np.sqrt(np.mean(samples[start:end].astype(np.float64) ** 2)) > limit
        if audible and following[:1] in ("r", "ɾ"):
            trill_start = start
            continue
        before = _plain(named[-1][0]) if named else ""
        glide = audible and bool(following) and before[:1] in ("i", "ɪ", "y")
        named.append(("j" if glide else name, start if trill_start is None else trill_start, end))
        trill_start = None
    return named


def _hold_start(samples: NDArray[np.int16], event: int, previous: int, rate: int) -> int:
    """Where the quiet before a plosive's burst begins; a third of the sound before it at most is taken on faith."""
    floor = max(previous + (event - previous) // 4, event - round(0.12 * rate))
    loudness = np.abs(samples[floor:event].astype(np.int32))
    limit = max(60, int(0.03 * np.abs(samples[previous:event]).max(initial=0)))
    loud = np.flatnonzero(loudness > limit)
    return floor + int(loud[-1]) + 1 if len(loud) else floor
