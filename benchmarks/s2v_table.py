"""Figures of `s2v.py` into the text that is printed and that the documentation shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from documents import markdown, write_section
from s2v_meter import Record, largest
from s2v_stages import CLIPS

MAX_RATIO = 2  # our error may be so many times that of plain PyTorch in the same precision
_VERSIONS = {"driver": "driver", "torch": "PyTorch", "cuda": "CUDA", "cudnn": "cuDNN", "triton": "Triton"}
_STAGES = ("text", "audio", "encode", "denoise", "decode", "interpolate")
_TITLES = {
    **{clip: f"forward, {clip}" for clip in CLIPS},
    "encode reference": "encode the reference",
    "encode hand-over": "encode the history that a clip hands over",
    "decode first clip": "decode what a first clip keeps",
    "decode later clip": "decode what a later clip keeps",
}


def describe(results: Record) -> str:
    """All that one results file holds, as Markdown."""
    measured = results["measured"]
    parts = [_caption(results["circumstances"])]
    if rows := list(_stage_rows(measured)):
        parts.append(markdown(["median (least–most)", *_sizes(measured)], rows))
    parts += [_about_eight_bit(size, record["change"]) for size, record in measured.get("eight-bit", {}).items()]
    if "official" in measured:
        parts.append(_about_official(measured["official"]))
    for stage, show in (("whole", _run), ("error", _error), ("load", _load)):
        parts += [show(where, record) for where, record in measured.get(stage, {}).items()]
    return "\n\n".join(part.strip() for part in parts)


def write_document(document: Path, contents: Sequence[Record]) -> None:
    """Put the texts of all results files into the document's section."""
    texts = [f"### {results['circumstances']['gpu']}\n\n{describe(results)}" for results in contents]
    write_section(document, "s2v", "\n\n".join(texts))


def _caption(at: Record) -> str:
    power = f" ({at['power_limit_w']:g} W)" if at["power_limit_w"] else ""
    versions = ", ".join(f"{name} {at[key]}" for key, name in _VERSIONS.items() if at[key])
    return (
        f"{at['model']} with random weights, {at['dtype']}, {at['gpu']}{power}; {versions}; "
        f"commit {at['commit'][:12]}, sources {at['sources']}. Weights stay on the GPU; memory is the peak of what was "
        "allocated / of what PyTorch held."
    )


def _sizes(measured: Record) -> list[str]:
    stages = ("forward", "vae", "eight-bit", "official")
    return list(dict.fromkeys(size for stage in stages for size in measured.get(stage, {})))


def _stage_rows(measured: Record) -> Iterator[list[str]]:
    """Time and memory of every stage that was measured; below ours, those in 8 bits and the official code's."""
    for name, title in _TITLES.items():
        stage = "forward" if name in CLIPS else "vae"

        def against(what: str, record: Record, size: str, stage: str = stage, name: str = name) -> str:
            ours = measured.get(stage, {}).get(size, {}).get(name)
            return f"{_timed(record)}, {record['median_s'] / ours['median_s']:.2f} × {what}" if ours else _timed(record)

        yield from _row(title, measured, stage, name, lambda record, _: _timed(record))
        if name in CLIPS:
            yield from _row("– tokens, rate", measured, stage, name, lambda record, _: _rate(record))
        yield from _row("– memory", measured, stage, name, lambda record, _: _memory(record))
        yield from _row(f"8 bits: {title}", measured, "eight-bit", name, partial(against, "bfloat16"))
        yield from _row("– memory", measured, "eight-bit", name, lambda record, _: _memory(record))
        yield from _row(f"official: {title}", measured, "official", name, partial(against, "ours"))
        yield from _row("– memory", measured, "official", name, lambda record, _: _memory(record))


def _row(
    title: str, measured: Record, stage: str, name: str, show: Callable[[Record, str], str]
) -> Iterator[list[str]]:
    """The row of one stage at all sizes, or none where nothing was measured."""
    records = {size: measured.get(stage, {}).get(size, {}).get(name) for size in _sizes(measured)}
    cells = [show(record, size) if record else "" for size, record in records.items()]
    if any(cells):
        yield [title, *cells]


def _about_eight_bit(size: str, change: Record) -> str:
    return (
        f"In 8 bits a prediction at {size} has a cosine of {change['cosine']:.6f} with the exact one, at a relative L2 "
        f"distance of {change['relative_l2']:.3e}."
    )


def _about_official(records: Record) -> str:
    distances = [
        f"{record['noise_pred']['relative_l2']:.2g} (prediction) and {record['motion_latents']['relative_l2']:.2g} "
        f"(latents of the history) at {size}"
        for size, record in records.items()
    ]
    return (
        "The official code is Wan-Video/Wan2.2 with the same weights, its `flash_attention` replaced at run time by "
        "PyTorch's attention with the cuDNN backend; it decodes the whole history with every clip. Relative L2 "
        f"distance of its results from ours: {'; '.join(distances)}."
    )


_CLIPS = {1: "One clip", 2: "Two clips"}


def _run(size: str, record: Record) -> str:
    """The run of one or two clips at one size: what it took, and each of its stages."""
    steps, full_steps = record["steps"], record["full_steps"]
    text = (
        f"{_CLIPS[len(record['clips'])]} at {size}, {record['frames']} frames, {steps} steps a clip: "
        f"{_seconds(record['total_s'])} measured."
    )
    if steps != full_steps:
        full = _seconds(record["full_total_s"])
        what = "computed steps of 40" if record.get("preset") == "fast" else "steps"
        text += f" With {full_steps} {what} a clip: {full}, extrapolated by the measured time of a step."
    if record["attention"]:
        text += f" Attention ran on {', '.join(sorted(set(record['attention'].values())))}."
    if memory := record.get("memory"):
        estimate = memory["estimate_gib"] * 2**30
        peak = largest(list(record["peaks"].values()))["allocated_bytes"]  # the program's own is reset by every stage
        text += f" Memory: {memory['policy']}; estimated {estimate / 1e9:.1f} GB, {100 * (estimate / peak - 1):+.1f} %."
    if record["write_s"] is None:
        text += " Writing the mp4 is not part of it, since PyAV with libx264 was not installed."
    clips = [clip["stages_s"] for clip in record["clips"]]
    rows = [
        [stage, *(_seconds(clip.get(stage)) for clip in clips), _memory(record["peaks"][stage])] for stage in _STAGES
    ]
    rows.insert(
        _STAGES.index("denoise") + 1,
        [f"– a step of {record['passes_per_step']} forwards", *(_timed(clip["step"]) for clip in record["clips"]), ""],
    )
    missing = full_steps - steps
    in_full = [sum(clip["stages_s"].values()) + missing * clip["step"]["median_s"] for clip in record["clips"]]
    rows.append([f"the clip with {full_steps} steps", *map(_seconds, in_full), ""])
    gaps = [""] * (len(clips) - 1)
    rows.append(["write the mp4", *gaps, _seconds(record["write_s"]), ""])
    rows.append(["all", *gaps, _seconds(record["total_s"]), _memory(largest(list(record["peaks"].values())))])
    header = [f"{size}, {steps} steps", *("first clip", "second clip")[: len(clips)], "memory"]
    return f"{text}\n\n{markdown(header, rows)}"


def _error(size: str, record: Record) -> str:
    """How far low precision is from float32."""
    rows = [
        [name, f"{record[key]['relative_l2']:.3e}", f"{record[key]['cosine']:.7f}"]
        for key, name in (("ours", "this project"), ("plain", "plain PyTorch under autocast"))
    ]
    header = [f"against float32, {record['layers']} blocks, {size}", "relative L2 error", "cosine"]
    missed = "" if record["ratio"] <= MAX_RATIO else " (missed)"
    return (
        f"{markdown(header, rows)}\n"
        f"Our error is {record['ratio']:.2f} times that of plain PyTorch; at most {MAX_RATIO} are allowed{missed}."
    )


def _load(part: str, record: Record) -> str:
    disk, memory = (
        f"{_seconds(record[name]['seconds_s'])} ({record[name]['bytes_per_s'] / 1e9:.2f} GB/s)"
        for name in ("from disk", "from memory")
    )
    return (
        f"`from_pretrained` of {part}, VAE and speech encoder ({record['stored_bytes'] / 1e9:.2f} GB): {disk}; "
        f"{memory} where the system still holds the files in memory."
    )


def _timed(record: Record) -> str:
    return f"{_number(record['median_s'])} s ({_number(record['min_s'])}–{_number(record['max_s'])})"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{_number(seconds)} s"


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _rate(record: Record) -> str:
    return f"{record['tokens']:,}, {_number(record['flops_per_s'] / 1e12)} TFLOP/s"


def _memory(record: Record) -> str:
    """Empty where it is not known."""
    allocated, reserved = record["allocated_bytes"], record["reserved_bytes"]
    return "" if allocated is None else f"{allocated / 1e9:.1f} / {reserved / 1e9:.1f} GB"
