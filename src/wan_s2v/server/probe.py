"""Reads the model's headers and measures the device, in a process that ends and gives all of it back.

What it finds goes to the server as one line of JSON: facts for clients, and the opened model, packed for the other
processes, which the server passes on without looking inside.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from wan_s2v.commands.request import ModelChoice, find_machine, open_model
from wan_s2v.errors import WanS2VError
from wan_s2v.plan import DEFAULT_FPS, PRESETS, GenerationOptions
from wan_s2v.server.speech import voice_names


def probe(choice: ModelChoice, options: GenerationOptions) -> dict[str, Any]:
    """Raises: as `open_model`."""
    model = open_model(choice, options)
    machine, spec = find_machine(model), model.spec
    return {
        "name": Path(choice.model).name,
        **model.place,
        "num_devices": torch.cuda.device_count() if model.device.type == "cuda" else 1,
        "presets": list(PRESETS),
        "voices": voice_names(),
        "defaults": {
            "fps": DEFAULT_FPS,
            "area": spec.max_area,
            "frames_per_clip": spec.frames_per_clip,
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "flow_shift": spec.flow_shift,
            "scheduler": spec.scheduler,
            "size_multiple": spec.size_multiple,
        },
        "model": base64.b64encode(pickle.dumps(model)).decode(),
        "machine": base64.b64encode(pickle.dumps(machine)).decode(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads)
    settings = parser.parse_args().settings
    components = settings["choice"].pop("components")
    choice = ModelChoice(**settings["choice"], components=None if components is None else Path(components))
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = probe(choice, GenerationOptions(**settings["options"]))
        except WanS2VError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
