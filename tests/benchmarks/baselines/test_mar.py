"""Masked autoregression: its tokens, its masks and its samples."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines.fitting import fit
from benchmarks.baselines.mar import MAR, unknown_after


def test_tokens_are_cut_and_joined() -> None:
    x = torch.arange(2 * 28 * 28, dtype=torch.float32).reshape(2, 1, 28, 28)
    model = MAR(patch=4, width=16, depth=1)
    tokens = model.cut(x)
    assert torch.equal(tokens[0, 1].reshape(4, 4), x[0, 0, :4, 4:8])
    assert torch.equal(model.joined(tokens), x)


def test_unknown_tokens_do_not_enter() -> None:
    torch.manual_seed(0)
    model = MAR(8, 4, width=16, depth=2).eval()
    tokens, known = torch.randn(3, 4, 16), torch.tensor([[True, False, True, False]]).expand(3, 4)
    other = torch.where(known[..., None], tokens, torch.randn(3, 4, 16))
    assert torch.equal(model.hidden(tokens, known), model.hidden(other, known))
    assert not torch.equal(model.hidden(tokens, known), model.hidden(tokens, ~known))


def test_the_number_of_unknown_tokens_falls_to_none() -> None:
    for rounds, tokens in ((1, 49), (12, 49), (64, 49), (3, 4)):
        left = unknown_after(rounds, tokens)
        assert len(left) == rounds and left[-1] == 0 and left == sorted(left, reverse=True)


@pytest.mark.slow
def test_tokens_drawn_one_after_the_other_belong_together() -> None:
    """Images that are all 0.7 or all -0.7: within a sample the tokens agree, over samples both occur."""
    g = torch.Generator().manual_seed(0)
    data = (
        1.4 * torch.randint(0, 2, (4000, 1, 1, 1), generator=g) - 0.7 + 0.05 * torch.randn(4000, 1, 4, 4, generator=g)
    )
    torch.manual_seed(0)
    found = fit(
        MAR(4, 2, width=32, depth=1), data.float(), lambda net, x: net.loss(x), steps=400, batch_size=64,
        learning_rate=3e-3, ema=0.99,
    )  # fmt: skip
    torch.manual_seed(1)
    x = found.network.sample(400, rounds=4)
    mean = x.mean((1, 2, 3))
    assert 0.35 < float((mean > 0).double().mean()) < 0.65
    assert float((mean.abs() - 0.7).abs().median()) < 0.1
    assert float(x.std((1, 2, 3)).median()) < 0.2
