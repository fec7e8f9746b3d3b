"""Ctrl-C and SIGTERM while a video is made: the first one stops it where it can go on, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping(stop: Callable[[], None], note: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` at the first signal, and leave the next one to who handled it before.

    Does nothing outside the main thread, where Python does not take signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, before[each])
        stop()
        if number == signal.SIGINT:
            note("Stopping after this step; what is done is kept. Ctrl-C again stops at once.")
        elif callable(before[number]):
            before[number](number, frame)

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
