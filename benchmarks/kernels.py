"""Our kernels at the shapes of S2V-14B: time, throughput, error, and plain PyTorch or the vendor's library beside them.

    python benchmarks/kernels.py                       # both sizes; table and results/kernels-<gpu>.json (about 90 s)
    python benchmarks/kernels.py --tokens 35126
    python benchmarks/kernels.py --tabulate            # measures nothing; results into docs/performance.md
    python benchmarks/kernels.py --small               # the same cases on a CPU, in Triton's interpreter; no speeds

Both sides of a row run in turns in the same process; times are medians of 20 runs after 3. Errors are relative to
float32, in the L2 norm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if "--small" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when kernels are defined

import torch
import torch.nn.functional as F
from documents import markdown, write_section
from torch import Tensor

from wan_s2v.ops.attention import attention
from wan_s2v.ops.attention_eight_bit import attention_eight_bit, key_mean, plain_attention_eight_bit
from wan_s2v.ops.eight_bit import FLOAT8, INT8, Quantized, eight_bit_linear, plain_quantize_rows, quantize_rows
from wan_s2v.ops.linear import linear_gelu
from wan_s2v.ops.norm import Rows, Update, add_and_norm, modulation, plain_add_and_norm
from wan_s2v.ops.rope import norm_and_turn, plain_norm_and_turn, rotary_table

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
EIGHT_BITS = (("int8", INT8), ("float8", FLOAT8))
TOKENS = {"832x480": (35_126, 31_200), "1280x704": (79_200, 70_400)}  # of the sequence, and of these noise


@dataclass(frozen=True)
class Shape:
    """A sequence of S2V."""

    name: str
    tokens: int
    noise: int
    channels: int
    inner: int
    heads: int
    device: str


@dataclass(frozen=True)
class Case:
    """One operation in two implementations.

    Args:
        ours, other: give the same tensor, up to rounding.
        exact: gives it in float32; None where that does not fit.
        flops, bytes: of one run.
    """

    name: str
    other_name: str
    ours: Callable[[], Tensor]
    other: Callable[[], Tensor]
    exact: Callable[[], Tensor] | None = None
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Row:
    """What was found of a case; times in microseconds."""

    size: str
    case: str
    other: str
    ours_us: float
    other_us: float
    tflops: float
    gb_per_s: float
    error: float | None
    other_error: float | None


def random(shape: Shape, *sizes: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(shape.device).manual_seed(seed)
    return torch.randn(*sizes, generator=generator, device=shape.device, dtype=torch.float32).to(dtype)


def cases(shape: Shape) -> Iterator[Case]:
    """Every operation of a block, one after the other so that only one case's tensors live."""
    yield from norm_cases(shape)
    yield from rotary_cases(shape)
    yield from linear_cases(shape)
    yield from attention_cases(shape)


def norm_cases(shape: Shape) -> Iterator[Case]:
    tokens, channels = shape.tokens, shape.channels
    x = random(shape, 1, tokens, channels, dtype=torch.float32)
    table = random(shape, 1, 2, channels, seed=2, dtype=torch.float32) / 10
    update = Update(random(shape, 1, tokens, channels, seed=1), Rows(table, shape.noise))
    norm = modulation(Rows(table, shape.noise), Rows(table, shape.noise), tokens, 1e-6)
    for name, dtype, width in (("bfloat16", torch.bfloat16, 2), *((name, dtype, 1) for name, dtype in EIGHT_BITS)):
        yield Case(
            f"gate, add, norm, modulate → {name}",
            "plain PyTorch",
            lambda dtype=dtype: values_of(add_and_norm(x.clone(), update, norm, dtype)[1]),
            lambda dtype=dtype: values_of(plain_add_and_norm(x.clone(), update, norm, dtype)[1]),
            bytes=tokens * channels * (4 + 4 + 2 + width + 8),  # with the copies that both sides make here
        )


def rotary_cases(shape: Shape) -> Iterator[Case]:
    tokens, channels = shape.tokens, shape.channels
    q, weight = random(shape, 1, tokens, channels), random(shape, channels, seed=1)
    positions = torch.arange(3 * tokens, device=shape.device).view(tokens, 3) % 90
    table = rotary_table(positions, channels // shape.heads)
    yield Case(
        "RMSNorm, RoPE of q",
        "plain PyTorch",
        lambda: norm_and_turn(q.clone(), weight, 1e-6, shape.heads, table),
        lambda: plain_norm_and_turn(q.clone(), weight, 1e-6, shape.heads, table),
        lambda: plain_norm_and_turn(q.float(), weight, 1e-6, shape.heads, table),
        bytes=tokens * channels * 2 * 4,  # with the copies that both sides make here
    )


def linear_cases(shape: Shape) -> Iterator[Case]:
    tokens, channels, inner = shape.tokens, shape.channels, shape.inner
    x = random(shape, 1, tokens, channels)
    weight, bias = random(shape, inner, channels, seed=1) / channels**0.5, random(shape, inner, seed=2)
    flops = 2.0 * tokens * channels * inner
    yield Case(
        "linear, GELU",
        "linear, then GELU",
        lambda: linear_gelu(x, weight, bias),
        lambda: F.gelu(F.linear(x, weight, bias), approximate="tanh"),
        lambda: F.gelu(F.linear(x.float(), weight.float(), bias.float()), approximate="tanh"),
        flops=flops,
    )
    for name, dtype in EIGHT_BITS:
        factors = quantize_rows(x, dtype), plain_quantize_rows(weight, dtype)
        yield Case(
            f"linear, {name}",
            "bfloat16",
            lambda factors=factors: product(*factors, bias),
            lambda: F.linear(x, weight, bias),
            lambda: F.linear(x.float(), weight.float(), bias.float()),
            flops=flops,
        )
        yield Case(
            f"rows to {name}",
            "plain PyTorch",
            lambda dtype=dtype: quantize_rows(x, dtype).values,
            lambda dtype=dtype: plain_quantize_rows(x, dtype).values,
            bytes=tokens * channels * 3,
        )


def product(x: Quantized, weight: Quantized, bias: Tensor) -> Tensor:
    """8-bit x · weightᵀ + bias; on the CPU our kernel, too, which the dispatcher would not take."""
    if x.values.is_cuda or x.values.dtype != INT8:
        return eight_bit_linear(x, weight, bias)
    from wan_s2v.ops.eight_bit_kernel import launch_linear_int8

    flat = Quantized(x.values.flatten(0, 1), x.scale.flatten(0, 1))
    return launch_linear_int8(flat, weight, bias, bias.dtype)[None]


def attention_cases(shape: Shape) -> Iterator[Case]:
    size = (1, shape.tokens, shape.heads, shape.channels // shape.heads)
    q, k, v = (random(shape, *size, seed=k) for k in range(3))
    flops = 4.0 * shape.tokens**2 * shape.channels
    exact = None
    if shape.tokens < 1000:
        exact = lambda: attention(q.float(), k.float(), v.float())  # noqa: E731 - quadratic memory on the CPU
    yield Case(
        "attention, fastest backend",
        "PyTorch's choice",
        lambda: attention(q, k, v),
        lambda: F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2),
        exact,
        flops=flops,
    )
    if shape.device == "cpu":  # kernels are launched by hand where the dispatcher would not
        from wan_s2v.ops.attention_eight_bit_kernel import launch_attention_eight_bit

        yield Case(
            "attention, 8 bits",
            "plain PyTorch",
            lambda: launch_attention_eight_bit(q, k, v, key_mean(k)),
            lambda: plain_attention_eight_bit(q, k, v),
            exact,
            flops=flops,
        )
        return
    yield Case(
        "attention, 8 bits",
        "bfloat16",
        lambda: attention_eight_bit(q, k, v),
        lambda: attention(q, k, v),
        flops=flops,
    )


def values_of(result: Tensor | Quantized) -> Tensor:
    return result.values if isinstance(result, Quantized) else result


def measure(shape: Shape, case: Case, runs: int) -> Row:
    """Times in turns, and errors."""
    ours, other = case.ours().float(), case.other().float().reshape(case.ours().shape)
    exact = None if case.exact is None else case.exact().reshape(ours.shape)
    errors = [None, None] if exact is None else [relative(ours, exact), relative(other, exact)]
    if exact is None:
        errors[0] = relative(ours, other)  # of one side against the other
    del ours, other, exact
    times = timed((case.ours, case.other), runs, shape.device)
    seconds = times[0] / 1e6
    return Row(
        shape.name,
        case.name,
        case.other_name,
        times[0],
        times[1],
        case.flops / seconds / 1e12,
        case.bytes / seconds / 1e9,
        *errors,
    )


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def timed(operations: tuple[Callable[[], Tensor], ...], runs: int, device: str) -> list[float]:
    """Median microseconds of each, run in turns."""
    if device == "cpu":
        return [float("nan")] * len(operations)
    times: list[list[float]] = [[] for _ in operations]
    for run in range(runs + 3):
        for operation, found in zip(operations, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            operation()
            end.record()
            end.synchronize()
            if run >= 3:
                found.append(1000 * begin.elapsed_time(end))
    return [statistics.median(found) for found in times]


def line(row: Row) -> str:
    errors = " / ".join("-" if error is None else f"{error:.1e}" for error in (row.error, row.other_error))
    speed = f"{row.tflops:7.0f} TFLOP/s" if row.tflops else f"{row.gb_per_s:7.0f} GB/s   "
    ratio = row.other_us / row.ours_us
    return f"{row.size:9} {row.case:36} {row.ours_us:10.0f} us {speed} {ratio:6.2f} x {row.other:18} error {errors}"


def table(found: dict[str, Any]) -> str:
    """All rows of a results file, as Markdown."""
    header = ["size", "operation", "µs", "rate", "beside it", "time of that", "relative error"]
    rows = [Row(**row) for row in found["rows"]]
    cells = [
        [
            row.size,
            row.case,
            f"{row.ours_us:,.0f}",
            f"{row.tflops:.0f} TFLOP/s" if row.tflops else f"{row.gb_per_s:,.0f} GB/s",
            row.other,
            f"{row.other_us / row.ours_us:.2f} ×",
            "" if row.error is None else f"{row.error:.1e}",
        ]
        for row in rows
    ]
    return f"{found['gpu']}, PyTorch {found['torch']}:\n\n{markdown(header, cells)}"


def write_tables() -> None:
    """Put the tables of all results into the documentation."""
    files = sorted(RESULTS.glob("kernels-*.json"))
    texts = [table(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    write_section(DOCUMENT, "kernels", "\n\n".join(texts))


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", help="lengths of the sequence in place of the two sizes")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tabulate", action="store_true")
    options = parser.parse_args(arguments)
    if options.tabulate:
        write_tables()
        return
    if not options.small and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device. Run on a GPU, or try the cases on the CPU with --small.")
    sizes = {str(count): (count, round(0.89 * count)) for count in options.tokens} if options.tokens else TOKENS
    shapes = [Shape(name, tokens, noise, 5120, 13_824, 40, "cuda") for name, (tokens, noise) in sizes.items()]
    if options.small:
        shapes = [Shape("small", 150, 130, 64, 96, 2, "cpu")]
    rows = []
    for shape in shapes:
        for case in cases(shape):
            rows.append(measure(shape, case, options.runs))
            print(line(rows[-1]), flush=True)
    if not options.small:
        gpu = torch.cuda.get_device_name()
        found = {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "rows": [asdict(r) for r in rows]}
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"kernels-{gpu.split()[1].lower() if ' ' in gpu else gpu}.json"
        target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
