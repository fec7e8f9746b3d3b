"""espeak-ng through ctypes: text in, samples and the times of its sounds out.

The library comes from the PyPI wheel `espeakng-loader` (the extras `sound` and `train`), else from the system. It is
under the GPL and is loaded only when something is to be spoken. Voices, pauses and mouths are not known here.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wan_s2v.errors import UsageError

_SYNCHRONOUS: Final = 2
# Without the last flag the library ends the process where it cannot read its data.
_PHONEME_EVENTS_AS_IPA: Final = 1 | 2 | 0x8000
_UTF8, _SSML = 1, 0x10
_EVENT_LIST_END, _EVENT_PHONEME = 0, 7
_RATE, _VOLUME, _PITCH, _PITCH_RANGE = 1, 2, 3, 4


@dataclass(frozen=True)
class Spoken:
    """samples: (n,) int16; events: sample and IPA name of every sound, as the library reports them."""

    samples: NDArray[np.int16]
    sample_rate: int
    events: list[tuple[int, str]]


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


class _Voice(ctypes.Structure):
    """espeak_VOICE of the same header; languages: a priority byte and a name in turn, then a zero."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


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
                "Making speech needs espeak-ng, which is not installed. Run: pip install wan-s2v[sound]."
            ) from None
        return system, None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


class Espeak:
    """The library as a function from text to samples.

    It keeps global state, so all instances share one handle, which must not be used from several threads. The same
    arguments give the same samples, whatever was spoken before: the library is loaded afresh for each text (0.5 ms),
    because its pitch flutter and noise otherwise go on where the last text stopped.
    """

    def __init__(self) -> None:
        self._library_path, self._data_path = find_library()
        self._callback = _Callback(self._receive)
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self._load()

    def speak(
        self, text: str, voice: str, *, rate: int, pitch: int, pitch_range: int, volume: int, is_ssml: bool = False
    ) -> Spoken:
        """Speak a text with a voice of the library, such as "en-us" or "cmn+f3".

        Raises: UsageError if the voice is not installed or the text holds nothing to say.
        """
        self._chunks, self._events = [], []
        library = self._load()
        # A variant that does not exist would be left out without a word.
        known = voice.partition("+")[2] in ("", *self.variants())
        if not known or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UsageError(f"There is no voice {voice!r}. Take one that is listed by wan-s2v voices.")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, pitch_range), (_VOLUME, volume)):
            library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8 | (_SSML if is_ssml else 0), None, None)
        library.espeak_Synchronize()
        if not self._chunks or not any(name for _, name in self._events):
            raise UsageError(f"Text {text!r} holds nothing that espeak-ng can say. Give words of the voice's language.")
        return Spoken(np.concatenate(self._chunks), self._source_rate, self._events)

    def languages(self) -> list[str]:
        """The names of all voices without variants, sorted: "af", "cmn", "en", "en-us", …"""
        library = _opened[0]
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        listed, names, index = library.espeak_ListVoices(None), set(), 0
        while listed[index]:
            at = listed[index].contents.languages
            while priority_and_name := ctypes.string_at(at):
                names.add(priority_and_name[1:].decode())
                at += len(priority_and_name) + 1
            index += 1
        return sorted(names)

    def variants(self) -> frozenset[str]:
        """The timbres that may follow a language and a plus."""
        path = ctypes.c_char_p()
        # Not a handle of its own: another instance may have closed it by loading the library afresh.
        _opened[0].espeak_Info(ctypes.byref(path))
        return _files_in(Path((path.value or b"").decode()) / "voices" / "!v")

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
                "reinstall in a shorter one: pip install wan-s2v[sound]."
            )
        library.espeak_SetSynthCallback(self._callback)
        if hasattr(library, "espeak_ng_SetRandSeed"):
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            library.espeak_ng_SetRandSeed(1)
        return library

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


@cache
def _files_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir())
