"""S2V-14B at full size on a GPU, with random weights, through the pipeline's own stages: seconds, memory, error.

A first clip has no motion tokens, a later one has. Figures are medians of `--repeats` after one call that does not
count, with the least and the most; the run of two clips is made once, with few steps, and extrapolated to the model's
40 by the measured time of a step. Each figure goes to `results/s2v-<gpu>.json` as soon as it is there; figures of
other code or another machine in that file are replaced.

Stages, and about how long each takes on one H100 at 832x480 and at 1280x704:

- error (20 s): float32, plain low precision and ours, of a model cut down to `--error-layers` blocks, at the first size
- load (60 s; only when named): writes 8 of the 40 blocks to the temporary folder (10 GB) and loads them twice
- forward (30 s, 105 s): the transformer, first and later clip
- vae (20 s, 45 s): encodes the reference and 73 frames of history, decodes 80 frames
- eight-bit (30 s, 70 s): the transformer with 8-bit products and attention, and how far that moves its predictions
- whole (60 s, 200 s): two clips of 80 frames, from sound and picture to mp4
- `--official FOLDER` (60 s, 180 s): forward and VAE of the official code, with the same weights

Making the weights takes some seconds and 34 GB of the GPU, 46 GB with the text encoder, which `whole` needs.

    python benchmarks/s2v.py                                  # all but load: about 10 minutes
    python benchmarks/s2v.py --stages forward,vae --official FOLDER                 # about 8 minutes
    python benchmarks/s2v.py --stages whole --caps 24 16 --sizes 1280x704           # in the memory of smaller cards
    python benchmarks/s2v.py --stages whole --preset fast --clips 1 --steps 12      # the fast preset, a 5-second video
    python benchmarks/s2v.py --tabulate --docs                # measures nothing; results into docs/performance.md
    python benchmarks/s2v.py --small                          # a tiny model on the CPU, to try the command
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import s2v_table
import torch
from s2v_meter import Meter, Record, circumstances
from s2v_model import FULL, SMALL, SPEC, Scale, Size, build_pipeline, random_inputs
from s2v_official import is_checkout, measure_official
from s2v_run import Video, can_write_video, measure_capped, measure_whole
from s2v_stages import measure_eight_bit, measure_error, measure_forward, measure_load, measure_vae

from wan_s2v import WanS2VPipeline
from wan_s2v.runtime.precision import DTYPES

HERE = Path(__file__).parent
STAGES = ("forward", "vae", "whole", "eight-bit", "error", "load")
DEFAULT_STAGES = ("forward", "vae", "whole", "eight-bit", "error")
_STARTED = time.perf_counter()


class Results:
    """Figures that were taken under the same circumstances; each is on disk as soon as it is there."""

    def __init__(self, path: Path | None, found: Record) -> None:
        """Go on with the file's figures if their circumstances are the same; without a path nothing is written."""
        self.path = path
        old = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
        self.values: Record = {"circumstances": found, "measured": {}}
        if old.get("circumstances") == found:
            self.values = old
        elif old:
            _say(f"{path} holds figures of other code or another machine; they are replaced.")

    def add(self, stage: str, where: str, record: Record) -> None:
        """Keep a stage's figures, at a frame size or of a part of the model."""
        self.values["measured"].setdefault(stage, {})[where] = record
        _say(f"{stage}, {where}: done")
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, scale: Scale, device: torch.device, results: Results) -> None:
    """All that was asked for; what needs a model of its own comes first, when the GPU is empty."""
    meter, dtype = Meter(device), DTYPES[arguments.dtype]
    sizes = arguments.sizes or scale.sizes
    if "error" in arguments.stages:
        record = measure_error(scale, sizes[0], arguments.error_layers, dtype, meter)
        results.add("error", str(sizes[0]), record)
    if "load" in arguments.stages:
        record = measure_load(scale, dtype, meter)
        results.add("load", f"{record['layers']} of {scale.transformer['num_layers']} blocks", record)
    meter.release()
    if arguments.official or {"forward", "vae", "whole", "eight-bit"} & set(arguments.stages):
        pipeline = build_pipeline(scale.models, dtype, device, with_text="whole" in arguments.stages)
        meter.wait()
        _say("weights made")
        for size in sizes:
            _measure_size(arguments, scale, pipeline, size, meter, results)
        if "eight-bit" in arguments.stages:  # last, since the transformer stays so
            found = measure_eight_bit(pipeline.transformer, sizes, scale.frames_per_clip, arguments.repeats, meter)
            for size, record in found.items():
                results.add("eight-bit", str(size), record)


def _measure_size(
    arguments: argparse.Namespace, scale: Scale, pipeline: WanS2VPipeline, size: Size, meter: Meter, results: Results
) -> None:
    frames, repeats, stages = scale.frames_per_clip, arguments.repeats, arguments.stages
    transformer = pipeline.transformer
    if "forward" in stages:
        inputs = random_inputs(transformer.config, size, frames, transformer.dtype, meter.device)
        results.add("forward", str(size), measure_forward(transformer, inputs, size, repeats, meter))
    if "vae" in stages:
        results.add("vae", str(size), measure_vae(pipeline, size, frames, repeats, meter))
    video = Video(arguments.clips, frames, arguments.steps, arguments.preset)
    name = str(size) if arguments.preset == "exact" else f"{size} {arguments.preset}"
    if "whole" in stages and not arguments.caps:
        results.add("whole", name, measure_whole(pipeline, size, video, meter))
    if arguments.caps:
        for cap, record in measure_capped(pipeline, size, video, arguments.caps, meter).items():
            results.add("whole", f"{name} in {cap:g} GB", record)
    if arguments.official:
        record = measure_official(arguments.official, pipeline, size, frames, repeats, meter)
        results.add("official", str(size), record)


def results_path(gpu: str) -> Path:
    """ "NVIDIA H100 80GB HBM3" → results/s2v-h100-80gb-hbm3.json"""
    name = "-".join(gpu.lower().removeprefix("nvidia").split())
    return HERE / "results" / f"s2v-{name}.json"


def _say(text: str) -> None:
    print(f"[{time.perf_counter() - _STARTED:.0f} s] {text}", file=sys.stderr, flush=True)


def _stages(text: str) -> tuple[str, ...]:
    """ "forward,vae" as names."""
    names = tuple(text.split(","))
    for name in names:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"{name!r} is not a stage. Choose from {', '.join(STAGES)}.")
    return names


def _size(text: str) -> Size:
    """ "832x480" as a size."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size. Write width and height, as 832x480.")
    size = Size(int(width), int(height))
    if min(size) < SPEC.min_side or any(side % SPEC.size_multiple for side in size):
        limits = f"multiples of {SPEC.size_multiple} and at least {SPEC.min_side}"
        raise argparse.ArgumentTypeError(f"{text} is not a size of this model. Both sides must be {limits}.")
    return size


def _checkout(text: str) -> Path:
    if not is_checkout(Path(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a checkout of Wan-Video/Wan2.2: it lacks wan/modules/s2v.")
    return Path(text)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Raises: SystemExit (2) for what is not accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=_stages, default=DEFAULT_STAGES, help=f"of {','.join(STAGES)}")
    parser.add_argument("--sizes", type=_size, nargs="+", help="832x480 1280x704 if left out")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the transformer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of each clip in the stage whole; 40 measures all of it")
    parser.add_argument(
        "--caps", type=float, nargs="+", default=(), help="whole runs in so many GB of the GPU, not in all"
    )
    parser.add_argument("--clips", type=int, choices=(1, 2), default=2, help="of the video in the stage whole")
    parser.add_argument("--preset", choices=("exact", "fast"), default="exact", help="of the stage whole")
    parser.add_argument("--error-layers", type=int, default=4, help="blocks of the model in the stage error")
    parser.add_argument("--official", type=_checkout, help="checkout of Wan-Video/Wan2.2 to measure beside ours")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU; no results unless named")
    parser.add_argument("--tabulate", action="store_true", help="measure nothing, only show results")
    parser.add_argument("--docs", action="store_true", help="write the tables of all results into the document")
    parser.add_argument("--results", type=Path, help="results/s2v-<gpu>.json beside this file if left out")
    parser.add_argument("--document", type=Path, default=HERE.parent / "docs" / "performance.md")
    arguments = parser.parse_args(words)
    if problem := _problem(arguments):
        parser.error(problem)
    return arguments


def _problem(arguments: argparse.Namespace) -> str | None:
    """What cannot be done together, or here."""
    if arguments.repeats < 1 or arguments.error_layers < 1:
        return "--repeats and --error-layers must be at least 1."
    if arguments.steps < 2:
        return "--steps must be at least 2: a clip's first step also prepares the clip and does not count."
    if arguments.caps and (arguments.small or "whole" not in arguments.stages or min(arguments.caps) <= 0):
        return "--caps needs a GPU, the stage whole and numbers above 0."
    if arguments.tabulate:
        return None if _results_files(arguments) else "There are no results to show. Measure first, or name --results."
    if "error" in arguments.stages and arguments.dtype == "float32":
        return "The stage error compares with float32. Choose another --dtype, or --stages without error."
    if arguments.small and arguments.official and arguments.dtype != "float32":
        return "On a CPU the official code runs in float32 only. Add --dtype float32."
    if arguments.small and arguments.docs and not arguments.results:
        return "A tiny model says nothing about speed. Leave --docs out, or name --results and --document."
    if not arguments.small and not torch.cuda.is_available():
        return "S2V-14B at full size needs a CUDA device, and PyTorch sees none. Add --small to try the command."
    return None


def _results_files(arguments: argparse.Namespace) -> list[Path]:
    """What tables are made of: the file that was named, or all."""
    files = [arguments.results] if arguments.results else sorted((HERE / "results").glob("s2v-*.json"))
    return [file for file in files if file.is_file()]


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    if not arguments.tabulate:
        device = torch.device("cpu") if arguments.small else torch.device("cuda", torch.cuda.current_device())
        scale = SMALL if arguments.small else FULL
        found = circumstances(scale.name, arguments.dtype, device)
        path = arguments.results if arguments.results or arguments.small else results_path(found["gpu"])
        if "whole" in arguments.stages and not can_write_video():
            _say("No mp4 will be written: PyAV with libx264 is not installed here.")
        results = Results(path, found)
        measure(arguments, scale, device, results)
        print(s2v_table.describe(results.values))
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in _results_files(arguments)]
    if arguments.tabulate:
        print("\n\n".join(map(s2v_table.describe, contents)))
    if arguments.docs:
        s2v_table.write_document(arguments.document, contents)


if __name__ == "__main__":
    main()
