"""Networks that return objects, and networks inside functions."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel, sample
from sde_diffusion.models.outputs import modules_in, tensor_of

LAYER = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, None),
        lambda y: [y],
        lambda y: {"sample": y},
        lambda y: SimpleNamespace(sample=y),
        lambda y: SimpleNamespace(sample=lambda: 3, mean=y),
    ],
)
def test_a_model_takes_the_tensor_out_of_what_its_network_returns(wrap: Any) -> None:
    x, t = torch.randn(3, 2), torch.full((3,), 0.4)
    plain = ScoreModel(lambda x, t: 0.3 * x, VPSDE())
    assert torch.equal(ScoreModel(lambda x, t: wrap(0.3 * x), VPSDE()).denoise(x, t), plain.denoise(x, t))


@pytest.mark.parametrize("output", [None, SimpleNamespace(prediction=torch.zeros(1)), (), {"x": torch.zeros(1)}])
def test_what_holds_no_tensor_is_refused_with_the_cure(output: Any) -> None:
    with pytest.raises(TypeError, match=f"returned {type(output).__name__}.*wrap it"):
        tensor_of(output)


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def call(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


def test_the_module_inside_a_function_is_found_and_moved() -> None:
    inner = nn.Linear(2, 2)
    for function in (
        lambda x, t: inner(x),
        partial(lambda net, x, t: net(x), inner),
        Holder(inner).call,
    ):
        assert modules_in(function) == [inner]
    assert modules_in(lambda x, t: LAYER(x)) == [LAYER]
    assert modules_in(lambda x, t: x) == []
    model = ScoreModel(lambda x, t: inner(x), VPSDE(), shape=(2,)).double()
    assert inner.weight.dtype == torch.float64
    assert sample(model, 2, nfe=4).dtype == torch.float64
