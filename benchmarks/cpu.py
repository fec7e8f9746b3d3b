"""Seconds per stage and peak memory of a small model with random weights on a CPU.

Each measurement is a process of its own: a voice of so many seconds through plan, stream and writer, as the command
line does it. Memory must not grow with length: the 10-minute peak stands beside the 1-minute peak.

    python benchmarks/cpu.py                    # 10 s, 1 minute, 10 minutes; table and benchmarks/results/cpu.json
    python benchmarks/cpu.py --seconds 10 60
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
ASSETS = HERE.parent / "src" / "wan_s2v" / "assets" / "demo"


def write_voice(path: Path, seconds: int, sample_rate: int = 16_000) -> None:
    """The bundled voice, repeated."""
    from wan_s2v.audio import load_waveform

    samples = load_waveform(ASSETS / "voice.wav").samples
    repeated = np.resize(samples, seconds * sample_rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((repeated * 32767).astype("<i2").tobytes())


def measure(seconds: int, size: int, steps: int) -> dict[str, float]:
    """One run in this process: seconds per stage and the process's peak memory."""
    import torch
    from random_model import build_random_pipeline

    from wan_s2v.result import open_writer, writable_frames

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        voice = Path(folder) / "voice.wav"
        write_voice(voice, seconds)
        pipeline = build_random_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        started = time.perf_counter()
        plan = pipeline.plan(voice, ASSETS / "portrait.png", height=size, width=size, num_inference_steps=steps, seed=0)
        stages: dict[str, float] = {"plan": time.perf_counter() - started}
        left = writable_frames(plan)
        with open_writer(Path(folder) / "out.mp4", plan, pipeline.describe(plan)) as writer:
            for clip in pipeline.run(plan):
                written = time.perf_counter()
                writer.write(clip.frames[:left])
                left -= len(clip.frames)
                stages["write"] = stages.get("write", 0.0) + time.perf_counter() - written
                for stage, spent in clip.seconds.items():
                    stages[stage] = stages.get(stage, 0.0) + spent
            finishing = time.perf_counter()
        stages["finish file"] = time.perf_counter() - finishing
        stages["total"] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"voice_s": seconds, "clips": plan.clips.num_clips, **stages, "peak_mib": peak}


def measure_interpolation(height: int, width: int) -> float:
    """Milliseconds per in-between frame of a picture that drifts by 3 x 2 pixels a frame."""
    import cv2

    from wan_s2v.interpolation import FrameInterpolator

    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 8, width // 8 + 8, 3), dtype=np.uint8)
    texture = cv2.resize(noise, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    frames = np.stack([texture[2 * k : 2 * k + height, 3 * k : 3 * k + width] for k in range(9)])
    interpolator = FrameInterpolator(16, 24)
    interpolator.push(frames[:3])
    started = time.perf_counter()
    made = interpolator.push(frames[3:])
    return 1000 * (time.perf_counter() - started) / (len(made) * 2 / 3)  # every third output is a model frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60, 600])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.size, arguments.steps)))
        return
    rows = []
    for seconds in arguments.seconds:
        command = [sys.executable, __file__, "--measure", str(seconds)]
        command += ["--size", str(arguments.size), "--steps", str(arguments.steps)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(printed.splitlines()[-1]))
        print("  ".join(f"{key} {value:.2f}" for key, value in rows[-1].items()), flush=True)
    peaks = [row["peak_mib"] for row in rows]
    print(f"peak memory of the longest voice: {peaks[-1] / peaks[-2]:.3f} x that of the one before")
    import torch

    sizes = {f"{width}x{height}": measure_interpolation(height, width) for height, width in ((480, 832), (720, 1280))}
    print("in-between frames:", ", ".join(f"{size} {ms:.0f} ms" for size, ms in sizes.items()))
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "frame": f"{arguments.size}x{arguments.size}",
        "steps": arguments.steps,
        "rows": rows,
        "interpolation_ms": sizes,
    }
    target = HERE / "results" / "cpu.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
