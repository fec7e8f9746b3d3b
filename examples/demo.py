"""`make demo`: the bundled portrait and voice through the command line, into an mp4.

No trained weights ship with this version, so a small model with random weights is made on the spot. Its frames are
noise; size, frame count, rate, duration and sound are those of a real run.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import diffusers
import transformers
from random_model import build_random_pipeline

from wan_s2v.cli import main

if __name__ == "__main__":
    output = sys.argv[1] if len(sys.argv) > 1 else "demo.mp4"
    media = files("wan_s2v") / "assets" / "demo"
    print("demo: small model with RANDOM weights: the picture is noise, everything around it is real", file=sys.stderr)
    for library in (diffusers, transformers):
        library.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        build_random_pipeline().save_pretrained(Path(folder))
        arguments = ["generate", "--model", folder, "--image", str(media / "portrait.png"), "--audio"]
        arguments += [str(media / "voice.wav"), "--height", "128", "--width", "192", "--seed", "42", "--overwrite"]
        sys.exit(main([*arguments, "--output", output]))
