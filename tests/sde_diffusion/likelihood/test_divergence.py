from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.likelihood.divergence import PROBES, draw_probes, value_and_traces

WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def field(x: Tensor) -> Tensor:
    """x -> tanh(W x), of Jacobian diag(1 - tanh^2) W; any shape of a sample."""
    return torch.tanh(x.flatten(1) @ WEIGHT.T).reshape(x.shape)


def jacobian(x: Tensor) -> Tensor:
    return (1 - field(x).flatten(1) ** 2)[:, :, None] * WEIGHT


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_the_exact_trace_is_that_of_the_jacobian(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, traces = value_and_traces(field, x)
    assert torch.allclose(value, field(x), rtol=1e-14)
    assert torch.allclose(traces[:, 0], jacobian(x).diagonal(dim1=1, dim2=2).sum(1), rtol=1e-13)
    assert not traces.requires_grad and not x.requires_grad


@pytest.mark.parametrize("kind", list(PROBES))
def test_an_estimate_is_the_quadratic_form_and_without_bias(kind: str) -> None:
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probes = draw_probes(kind, [5], 4000, 6)
    estimates = torch.einsum("pi,ij,pj->p", probes[0], jacobian(x)[0], probes[0])
    assert torch.allclose(value_and_traces(field, x, probes[:, :7])[1][0], estimates[:7], rtol=1e-12)
    exact = jacobian(x)[0].trace()
    assert (estimates.mean() - exact).abs() < 4 * estimates.std() / 4000**0.5
    # Variance: 2 |off-diagonal of the symmetric part|^2, and 2 |diagonal|^2 more for Gaussian probes.
    symmetric = (jacobian(x)[0] + jacobian(x)[0].T) / 2
    expected = 2 * symmetric.square().sum()
    if kind == "rademacher":
        expected = expected - 2 * symmetric.diagonal().square().sum()
    assert estimates.var() / expected == pytest.approx(1, abs=0.15)


def test_a_probe_depends_on_its_seed_alone() -> None:
    together = draw_probes("gaussian", [3, 9, 4], 2, 5)
    assert torch.equal(together[1:2], draw_probes("gaussian", [9], 2, 5))
    assert not torch.equal(together[0], together[1])
    with pytest.raises(ValueError, match="rademacher"):
        draw_probes("rademacer", [0], 1, 2)


def test_a_constant_field_has_no_divergence() -> None:
    value, traces = value_and_traces(lambda x: torch.ones(2, 3), torch.zeros(2, 3))
    assert value.tolist() == [[1.0] * 3] * 2 and traces.tolist() == [[0.0], [0.0]]
    layer = nn.Linear(1, 3)  # depends on parameters, not on x
    assert value_and_traces(lambda x: layer(torch.ones(2, 1)), torch.zeros(2, 3))[1].tolist() == [[0.0], [0.0]]


def test_traces_can_be_differentiated() -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: value_and_traces(field, z, graph=True)[1], x)
