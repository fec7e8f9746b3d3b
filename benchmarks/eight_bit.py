"""What 8-bit compute does to the predictions of a model: cosine and distance from those in bfloat16.

The clips are made once in bfloat16. Every prediction on the way is then made again, from the same latents, by the model
in 8 bits. On a CPU the same values are rounded in plain PyTorch, but for the probabilities of attention.

    python benchmarks/eight_bit.py                    # the embedded model: two clips of a drawn portrait; 3 minutes
    python benchmarks/eight_bit.py --model FOLDER --docs        # and the table into docs/performance.md
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from documents import markdown, write_section
from torch import Tensor, nn

from wan_s2v import WanS2VPipeline
from wan_s2v.models.transformer import Conditioning, WanS2VTransformer
from wan_s2v.ops.eight_bit import FLOAT8, INT8
from wan_s2v.runtime.quantization import attend_in_eight_bits, quantize

HERE = Path(__file__).parent
DEMO = HERE.parent / "src" / "wan_s2v" / "assets" / "demo"
KINDS = {"int8": INT8, "float8": FLOAT8, "bfloat16": None}


class Prediction(NamedTuple):
    """One call of a transformer and what it gave."""

    name: str
    latents: Tensor
    timestep: Tensor
    conditioning: Conditioning
    result: Tensor


def record(pipeline: WanS2VPipeline) -> list[Prediction]:
    """Every prediction of two clips."""
    found: list[Prediction] = []

    def note(name: str, _model: nn.Module, given: tuple[Tensor, Tensor, Conditioning], result: Tensor) -> None:
        latents, timestep, conditioning = given
        found.append(Prediction(name, latents.clone(), timestep, conditioning, result.clone()))

    hooks = [model.register_forward_hook(partial(note, name)) for name, model in _transformers(pipeline).items()]
    plan = pipeline.plan(DEMO / "voice_en.flac", DEMO / "portrait_2.png", seed=1, num_clips=2)
    for _ in pipeline.run(plan, output_type="latent"):
        pass
    for hook in hooks:
        hook.remove()
    return found


def compare(model: WanS2VTransformer, prediction: Prediction) -> tuple[float, float]:
    """Cosine with the recorded prediction, and relative L2 distance."""
    made = model(prediction.latents, prediction.timestep, prediction.conditioning).float().flatten()
    exact = prediction.result.float().flatten()
    cosine = torch.cosine_similarity(made, exact, dim=0).item()
    return cosine, ((made - exact).norm() / exact.norm()).item()


@torch.no_grad()
def measure(pipeline: WanS2VPipeline) -> list[list[str]]:
    """Rows of the table: products, attention, least and median cosine, largest distance."""
    predictions, rows = record(pipeline), []
    for products, dtype in KINDS.items():
        for attention in ("bfloat16", "8 bits"):
            if dtype is None and attention == "bfloat16":
                continue
            models = {name: copy.deepcopy(model) for name, model in _transformers(pipeline).items()}
            for model in models.values():
                if dtype is not None:
                    quantize(model, dtype)
                if attention == "8 bits":
                    attend_in_eight_bits(model)
            found = [compare(models[prediction.name], prediction) for prediction in predictions]
            cosines, distances = zip(*found, strict=True)
            cells = (f"{min(cosines):.5f}", f"{statistics.median(cosines):.5f}", f"{max(distances):.3f}")
            rows.append([products, attention, *cells])
    return rows


def _transformers(pipeline: WanS2VPipeline) -> dict[str, WanS2VTransformer]:
    names = ("transformer", "transformer_2")
    return {name: model for name in names if (model := getattr(pipeline, name, None)) is not None}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help='"tiny" or a folder')
    parser.add_argument("--docs", action="store_true", help="write the table into the document")
    parser.add_argument("--document", type=Path, default=HERE.parent / "docs" / "performance.md")
    arguments = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = WanS2VPipeline.from_pretrained(arguments.model, torch_dtype=torch.bfloat16, device_map=device)
    pipeline.set_progress_bar_config(disable=True)
    header = ["products", "attention", "least cosine", "median cosine", "largest distance"]
    table = markdown(header, measure(pipeline))
    print(table)
    if arguments.docs:
        write_section(arguments.document, "eight bits", table)


if __name__ == "__main__":
    main()
