"""Log-density ratios by line integrals of the score, against exact densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sde_diffusion import EDM, VPSDE, GaussianMixture
from sde_diffusion.likelihood.energy import log_ratio
from sde_diffusion.sde import SDE

MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.3, 1.2]]).double()


@pytest.mark.parametrize("sde", [VPSDE(), EDM(sigma_max=5.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_the_ratio_is_that_of_the_densities_and_the_error_bar_holds(sde: SDE, t: float) -> None:
    model = GaussianMixture(MEANS, std=0.2, sde=sde)
    x = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.full((6,), t, dtype=torch.float64)
    exact = model.log_prob(x[1], times) - model.log_prob(x[0], times)
    found = log_ratio(model, x[0], x[1], t, nodes=24)
    assert bool(((found.value - exact).abs() <= found.error + 1e-9).all())
    assert bool((found.error < 1e-3 * exact.abs().max()).all())
    assert torch.allclose(log_ratio(model, x[1], x[0], t, nodes=24).value, -found.value, atol=1e-9)


def test_the_value_is_that_of_the_finer_rule() -> None:
    model = GaussianMixture(MEANS, std=0.2, sde=VPSDE())
    a, b = MEANS[:1], MEANS[1:2]
    nodes, weights = (torch.tensor(c) for c in np.polynomial.legendre.leggauss(6))
    points = a + (nodes[:, None] + 1) / 2 * (b - a)
    slopes = (model.score(points, torch.full((6,), 0.2, dtype=torch.float64)) * (b - a)).sum(1)
    assert torch.allclose(log_ratio(model, a, b, 0.2, nodes=3).value, (weights / 2 * slopes).sum()[None])


def test_too_few_nodes_say_so_in_the_error() -> None:
    model = GaussianMixture(MEANS, std=0.02, sde=VPSDE())
    x = torch.tensor([[[-1.2, 0.6]], [[1.1, -0.4]]]).double()
    times = torch.full((1,), 0.01, dtype=torch.float64)
    exact = model.log_prob(x[1], times) - model.log_prob(x[0], times)
    few = log_ratio(model, x[0], x[1], 0.01, nodes=3)
    assert float((few.value - exact).abs()) > 1 and float(few.error) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"t": 0.0}, r"in \(0, 1\]"), ({"nodes": 1}, "at least 2 nodes"), ({"b": torch.zeros(3, 2)}, "one shape")],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    settings = {"a": torch.zeros(2, 2), "b": torch.ones(2, 2), "t": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        log_ratio(GaussianMixture(MEANS, std=0.2, sde=VPSDE()), **settings)  # type: ignore[arg-type]
