"""What `preset="fast"` saves and costs: steps that are extrapolated, against as many fewer steps.

Every row makes the same clips from the same noise; the error is the relative L2 distance of their latents from those of
all steps computed. Rows above the line compute some of the steps, rows below have only so many.

    python benchmarks/steps.py --model FOLDER                      # 40 steps, guidance 3, four drawn portraits
    python benchmarks/steps.py --model FOLDER --steps 20 --guidance 1 --clips 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wan_s2v import WanS2VPipeline
from wan_s2v.plan import FAST_CHANGE, GenerationPlan

DEMO = Path(__file__).parent.parent / "src" / "wan_s2v" / "assets" / "demo"
VOICES = ("voice_en.flac", "voice_zh.flac", "voice_es.flac")
THRESHOLDS = (0.05, 0.1, FAST_CHANGE, 0.25, 0.4)
FEWER = (0.75, 0.5, 0.4, 0.3, 0.2)  # of the steps


class Row(NamedTuple):
    """One way to make the clips.

    Args:
        computed: predictions per clip, on average.
        error: relative L2 distance of the latents.
    """

    name: str
    computed: float
    seconds: float
    error: float


def plans(pipeline: WanS2VPipeline, clips: int, steps: int, guidance: float) -> list[GenerationPlan]:
    """One clip of each of some portraits and voices."""
    common = {"num_clips": 1, "guidance_scale": guidance, "scheduler": "unipc", "num_inference_steps": steps}
    portraits = [DEMO / f"portrait_{index % 6 + 1}.png" for index in range(clips)]
    voices = [DEMO / VOICES[index % len(VOICES)] for index in range(clips)]
    pairs = zip(voices, portraits, strict=True)
    return [pipeline.plan(voice, portrait, seed=seed, **common) for seed, (voice, portrait) in enumerate(pairs)]


def make(pipeline: WanS2VPipeline, made_from: Sequence[GenerationPlan]) -> tuple[list[Tensor], float, float]:
    """Latents of every plan, predictions and seconds of denoising per clip."""
    clips = [clip for plan in made_from for clip in pipeline.run(plan, output_type="latent")]
    seconds = sum(clip.seconds["denoise"] for clip in clips) / len(clips)
    return [torch.as_tensor(clip.frames) for clip in clips], sum(c.num_predictions for c in clips) / len(clips), seconds


def with_threshold(plan: GenerationPlan, threshold: float) -> GenerationPlan:
    return replace(plan, sampling=replace(plan.sampling, step_cache=threshold))


def measure(pipeline: WanS2VPipeline, clips: int, steps: int, guidance: float) -> Iterator[Row]:
    """All steps, then thresholds, then fewer steps."""
    base = plans(pipeline, clips, steps, guidance)
    make(pipeline, base[:1])  # loads libraries
    exact, computed, seconds = make(pipeline, base)
    yield Row(f"all {steps} steps", computed, seconds, 0.0)
    ways = {f"threshold {t:g}": [with_threshold(plan, t) for plan in base] for t in THRESHOLDS}
    ways |= {f"{round(share * steps)} steps": plans(pipeline, clips, round(share * steps), guidance) for share in FEWER}
    for name, way in ways.items():
        latents, computed, seconds = make(pipeline, way)
        yield Row(name, computed, seconds, distance(latents, exact))


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Mean over clips of the relative L2 distance."""
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    return sum(errors) / len(errors)


def main(words: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="with transformers that were not distilled to few steps")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=3.0)
    arguments = parser.parse_args(words)
    started = time.perf_counter()
    device_map = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = WanS2VPipeline.from_pretrained(arguments.model, device_map=device_map)
    pipeline.set_progress_bar_config(disable=True)
    print(f"| {arguments.clips} clips, guidance {arguments.guidance:g} | computed | seconds a clip | ratio | error |")
    print("|---|---|---|---|---|")
    rows: list[Row] = []
    for row in measure(pipeline, arguments.clips, arguments.steps, arguments.guidance):
        rows.append(row)
        ratio = rows[0].seconds / row.seconds
        print(f"| {row.name} | {row.computed:.1f} | {row.seconds:.2f} | {ratio:.2f} | {row.error:.3f} |", flush=True)
    print(f"\n{pipeline.transformer.device}, {time.perf_counter() - started:.0f} s in all")
    return rows


if __name__ == "__main__":
    main()
