"""`make demo`: a bundled portrait and a recorded voice through the command line, into an mp4.

The embedded model makes it. A checkout without its weights shows a small model with random weights instead: its frames
are noise; size, frame count, rate, duration and sound are those of a real run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import diffusers
import transformers
from random_model import build_random_pipeline

from wan_s2v.cli import main

ASSETS = Path(str(files("wan_s2v") / "assets"))
PORTRAIT = ASSETS / "demo" / "portrait_1.png"
VOICE = ASSETS / "demo" / "voice_recorded.wav"
EMBEDDED = ASSETS / "tiny" / "model_index.json"
SIZE, RANDOM_SIZE = 256, 128  # sides of the frames; a random model has nothing to show in more


def choose_model(folder: Path) -> str:
    """ "tiny" where its weights are; else a random model, written into `folder`."""
    if EMBEDDED.is_file():
        _say(f"the embedded model makes {PORTRAIT.name} say {VOICE.name}")
        return "tiny"
    _say("no embedded weights here, so a small model with RANDOM weights stands in:")
    _say("its picture is noise, everything around it is real")
    for library in (diffusers, transformers):
        library.logging.disable_progress_bar()
    build_random_pipeline().save_pretrained(folder)
    return str(folder)


def generate(model: str, output: str) -> int:
    """Run the command line; its exit code."""
    side = str(SIZE if model == "tiny" else RANDOM_SIZE)
    words = ["generate", "--model", model, "--image", str(PORTRAIT), "--audio", str(VOICE), "--output", output]
    words += ["--height", side, "--width", side, "--seed", "42", "--overwrite"]
    _say(" ".join(["wan-s2v", *words]))
    begin = time.monotonic()
    code = main(words)
    if code == 0:
        _say(f"{output} took {time.monotonic() - begin:.0f} s, loading included")
    return code


def _say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(generate(choose_model(Path(temporary)), sys.argv[1] if len(sys.argv) > 1 else "demo.mp4"))
