"""`make demo`: a bundled portrait and a recorded voice through the command line, into an mp4.

The embedded model makes it, on the CPU or on a GPU.
"""

from __future__ import annotations

import sys
import time
from importlib.resources import files
from pathlib import Path

from wan_s2v.cli import main

MEDIA = Path(str(files("wan_s2v") / "assets" / "demo"))
PORTRAIT, VOICE = MEDIA / "portrait_1.png", MEDIA / "voice_recorded.wav"


def generate(output: str) -> int:
    """Run the command line; its exit code."""
    words = ["generate", "--image", str(PORTRAIT), "--audio", str(VOICE), "--output", output]
    words += ["--height", "256", "--width", "256", "--seed", "2", "--overwrite"]
    _say(" ".join(["wan-s2v", *words]))
    begin = time.monotonic()
    code = main(words)
    if code == 0:
        _say(f"{output} took {time.monotonic() - begin:.0f} s, loading included")
    return code


def _say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(generate(sys.argv[1] if len(sys.argv) > 1 else "demo.mp4"))
