"""The umT5 encoder, loaded from a .pth file in the official layout, equals the official one in float32 and bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import assert_close, load_golden

from wan_s2v.weights import load_model
from wan_s2v.weights.checkpoint import read_text_encoder

# Eager attention repeats the official order of operations: bfloat16 is exact on the kind of CPU that made the numbers.
# Another one rounds other sums (0.043 seen); the official bfloat16 itself is 0.12 from float32.
CASES = [(torch.float32, "out", 1e-5), (torch.bfloat16, "out_bf16", 0.06)]


@pytest.mark.parametrize(("dtype", "key", "atol"), CASES, ids=["float32", "bfloat16"])
def test_prompt_embeddings_equal_the_official_encoder(
    tmp_path: Path, dtype: torch.dtype, key: str, atol: float
) -> None:
    file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    weights = {name: tensor.bfloat16() for name, tensor in load_golden("t5_tiny.weights")[0].items()}
    torch.save(weights, file)
    encoder = load_model(read_text_encoder(file), dtype, torch.device("cpu"))
    golden, _ = load_golden("t5_tiny")
    with torch.no_grad():
        out = encoder(input_ids=golden["ids"].long(), attention_mask=golden["mask"].long()).last_hidden_state
    for row, length in enumerate(golden["mask"].sum(1).tolist()):
        assert_close(out[row, :length].float(), golden[key][row, :length].float(), atol, f"sample {row}")


def test_no_weight_stays_in_float32(tmp_path: Path) -> None:
    file = tmp_path / "t5.pth"
    torch.save(load_golden("t5_tiny.weights")[0], file)
    encoder = load_model(read_text_encoder(file), torch.bfloat16, torch.device("cpu"))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.get_submodule("encoder.embed_tokens").weight is encoder.get_submodule("shared").weight
