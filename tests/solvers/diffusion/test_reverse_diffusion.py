"""Reverse diffusion.

The forward chain's own coefficients, weak order 1 without Monte Carlo, the eta = 0 member.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.sde import SDE, VESDE, VPSDE, SubVPSDE
from solvers import SOLVERS, solve
from tests.solvers.linear import chain_law, orders, quadratic

SOLVER = SOLVERS["reverse-diffusion"]


class Fixed:
    """Every increment is 0.7."""

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.full_like(x, 0.7)

    independent = increment

    def rows(self, index: Tensor) -> Fixed:
        return self


def one_step(sde: SDE, t: float, s: float, eta: float = 1.0) -> tuple[float, float]:
    """(the result of one step from x = 1.3, the score there) for data N(0.5, 0.0625)."""
    data = Gaussian(torch.tensor([0.5]), torch.tensor([0.0625]), sde=sde)
    x = torch.full((1, 1), 1.3, dtype=torch.float64)
    times = [torch.tensor(c, dtype=torch.float64) for c in (t, s)]
    out = SOLVER.step(sde.reverse(data, eta=eta), x, *times, None, Fixed())[0]
    alpha, sigma = (float(c) for c in sde(t)[:2])
    # The score of N(alpha 0.5, alpha^2 0.0625 + sigma^2), not by way of the denoiser.
    return float(out), -(1.3 - alpha * 0.5) / (alpha**2 * 0.0625 + sigma**2)


def test_vp_step_is_the_papers_with_the_exact_beta() -> None:
    """x = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z, beta = 1 - exp(-int beta(u) du)."""
    t, s = 0.62, 0.6
    out, score = one_step(VPSDE(), t, s)
    beta = -math.expm1(-(0.1 * (t - s) + 19.9 * (t**2 - s**2) / 2))
    expected = (2 - math.sqrt(1 - beta)) * 1.3 + beta * score + math.sqrt(beta) * 0.7
    assert out == pytest.approx(expected, rel=1e-12)


def test_ve_step_is_the_papers() -> None:
    """x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z.

    The difference from r^2t - r^2s.
    """
    t, s = 0.4, 0.35
    out, score = one_step(VESDE(), t, s)
    gap = 0.01**2 * (5000 ** (2 * t) - 5000 ** (2 * s))
    assert out == pytest.approx(1.3 + gap * score + math.sqrt(gap) * 0.7, rel=1e-12)


def test_probability_flow_takes_half_the_score_and_no_noise() -> None:
    out, score = one_step(VESDE(), 0.4, 0.35, eta=0.0)
    gap = 0.01**2 * (5000**0.8 - 5000**0.7)
    assert out == pytest.approx(1.3 + gap * score / 2, rel=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_max=5.0)])
@pytest.mark.parametrize("eta", [1.0, 0.6, 0.0])
def test_weak_order_1(sde: SDE, eta: float) -> None:
    data = Gaussian(torch.tensor([0.0]), torch.tensor([0.25]), sde=sde)
    exact = float(data.moments(torch.tensor(0.05, dtype=torch.float64))[1])
    errors = [abs(chain_law(data, SOLVER, quadratic(n), eta=eta)[1] - exact) for n in (160, 320, 640)]
    assert orders(errors)[-1] == pytest.approx(1, abs=0.15)


def test_the_flow_member_is_deterministic() -> None:
    data = Gaussian(torch.zeros(1), torch.ones(1), sde=VPSDE())
    x = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
    runs = [solve(VPSDE().probability_flow(data), x, solver=SOLVER, nfe=10, seeds=s).x for s in ([0, 1, 2], [3, 4, 5])]
    assert torch.equal(*runs)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite(steps: int) -> None:
    data = Gaussian(torch.tensor([1.0]), torch.tensor([0.04]), sde=VPSDE())
    out = solve(VPSDE().reverse(data), torch.zeros(2, 1), solver=SOLVER, steps=steps)
    assert out.nfe.tolist() == [steps, steps]
    assert out.x.isfinite().all()
