"""Attention, and the choice of the kernel that does it."""

from __future__ import annotations

import torch

from wan_s2v.ops.attention import attention, fastest

Q, K, V = (torch.randn(2, n, 3, 16, generator=torch.Generator().manual_seed(n)) for n in (7, 5, 5))


def test_attention_is_softmax_of_scaled_products():
    scores = torch.einsum("blnd,bmnd->bnlm", Q, K) / 4
    wanted = torch.einsum("bnlm,bmnd->blnd", scores.softmax(-1), V).flatten(2)
    torch.testing.assert_close(attention(Q, K, V), wanted, rtol=1e-5, atol=1e-6)


def _choose(seconds: dict[str, float]) -> str:
    """The choice among backends that take so long; a negative time means that one fails."""

    def backend(name):
        def run(_q, _k, _v):
            if seconds[name] < 0:
                raise RuntimeError("no kernel for this size")
            return torch.tensor(seconds[name])

        return run

    return fastest({name: backend(name) for name in seconds}, Q, K, V, lambda operation: float(operation()))


def test_the_fastest_backend_is_chosen():
    assert _choose({"cudnn": 3.0, "flash3": 2.0, "torch": 5.0}) == "flash3"


def test_noise_does_not_decide():
    assert _choose({"cudnn": 2.00, "flash3": 1.99, "torch": 5.0}) == "cudnn"


def test_a_backend_that_cannot_is_passed_over():
    assert _choose({"cudnn": -1.0, "flash3": -1.0, "torch": 5.0}) == "torch"
    assert _choose({"cudnn": -1.0}) == "torch"
