"""How a process that computes on its CPU keeps memory: for the programs of this package, not for the library.

By default glibc gives every larger block back to the system when it is freed, and the next one arrives as new pages,
each of which the system clears. A model's tensors come and go by the thousand, so the pages are kept here.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have freed memory wait for its next use in this process; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _ALL))
