"""Local error estimates: free, of the order of the local error, and telling where it sits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import VPSDE
from solvers import SOLVERS, Solver, solve
from solvers.classical.embedded_rk import EmbeddedRungeKutta
from solvers.diffusion.er_sde import ERSDE
from solvers.diffusion.ipndm import IPNDM
from solvers.exponential.adams import ExponentialAdams

SDE = VPSDE()
MIXTURE = GaussianMixture(torch.tensor([[0.8, -0.4], [-0.5, 0.9], [0.1, -1.2]], dtype=torch.float64), std=0.3, sde=SDE)
FLOW = SDE.probability_flow(MIXTURE)
X = SDE.prior((6, 2), seeds=range(6), dtype=torch.float64)


def grid(steps: int, end: float = 0.05) -> Tensor:
    return torch.linspace(1, end**0.5, steps + 1, dtype=torch.float64) ** 2


@pytest.mark.parametrize("name", ["dpm++2m", "unipc", "pf-ode", "ipndm", "er-sde", "rk45", "euler"])
def test_asking_for_errors_changes_nothing_and_costs_nothing(name: str) -> None:
    settings = {"nfe": 60} if SOLVERS[name].adaptive else {"grid": grid(12)}
    plain = solve(FLOW, X, solver=name, **settings)
    asked = solve(FLOW, X, solver=name, errors=True, **settings)
    assert torch.equal(plain.x, asked.x)
    assert torch.equal(plain.nfe, asked.nfe)
    assert plain.errors is None


def test_a_solver_without_estimate_leaves_none() -> None:
    errors = solve(FLOW, X, solver="euler", grid=grid(5), errors=True).errors
    assert errors is not None
    assert errors.error.shape == (0, 6)


@pytest.mark.parametrize(
    ("solver", "power"),
    [
        # Corrected minus predicted is the local error of the predictor, of order p + 1.
        (ExponentialAdams(1, corrector=True), 2),
        (ExponentialAdams(2, corrector=True), 3),
        (ExponentialAdams(2, form="velocity", variable="angle", corrector=True), 3),
        # The difference of orders p and p - 1 is the local error of the lower one, of order p.
        (ExponentialAdams(2), 2),
        (ExponentialAdams(3, form="noise", variable="time"), 3),
        (ERSDE(2), 2),
        # Weights for even steps leave the lower order's error, of order 2, on an uneven grid.
        (IPNDM(2), 2),
    ],
)
def test_multistep_estimates_shrink_with_the_order(solver: Solver, power: int) -> None:
    sizes = []
    for steps in (80, 160, 320):
        errors = solve(FLOW, X, solver=solver, grid=grid(steps), errors=True).errors
        assert errors is not None
        near = (errors.t[:, 0] - 0.3).abs().argmin()
        sizes.append(float(errors.error[near].norm()))
    slope = math.log2(sizes[1] / sizes[2])
    assert abs(slope - power) < 0.15, sizes


def test_the_estimate_predicts_the_error_of_one_step() -> None:
    """A two-value step against the exact flow from the same point, with an exact history."""
    exact = EmbeddedRungeKutta(rtol=1e-12)
    a, b, c = (float(v) for v in grid(60)[30:33])
    start = solve(FLOW, X, solver=exact, grid=[1.0, a]).x
    out = solve(FLOW, start, solver=ExponentialAdams(2), grid=[a, b, c], errors=True)
    assert out.errors is not None and out.errors.error.shape == (1, 6)
    assert (float(out.errors.t[0, 0]), float(out.errors.s[0, 0])) == (b, c)
    # The same step with one value less differs from it by what is estimated.
    first = solve(FLOW, start, solver=ExponentialAdams(1), grid=[a, b])
    low = solve(FLOW, first.x, solver=ExponentialAdams(1), grid=[b, c])
    apart = (out.x - low.x).square().mean(1).sqrt()
    assert torch.allclose(out.errors.error[0], apart, rtol=1e-9)


def test_corrector_estimates_name_the_step_they_judge() -> None:
    times = grid(8)
    errors = solve(FLOW, X, solver="pf-ode", grid=times, errors=True).errors
    assert errors is not None
    # The value at the end of a step judges it; the last step has none.
    assert torch.equal(errors.t[:, 0], times[:7])
    assert torch.equal(errors.s[:, 0], times[1:8])


def test_adaptive_estimates_belong_to_accepted_attempts() -> None:
    solver = EmbeddedRungeKutta(rtol=1e-5)
    out = solve(FLOW, X, solver=solver, grid=[1.0, 0.05], errors=True)
    assert out.errors is not None
    made = out.errors.error.isfinite()
    # Accepted attempts join up to the whole interval, and only they move.
    assert torch.equal(made, out.errors.t != out.errors.s)
    covered = torch.where(made, out.errors.t - out.errors.s, 0.0).sum(0)
    assert torch.allclose(covered, torch.full((6,), 0.95, dtype=torch.float64), rtol=1e-12)
    rounds = (out.nfe - 1) // 6
    assert bool((made.sum(0) <= rounds).all())
    # |x| stays below 4 here: no accepted error exceeds the tolerance times 1 + |x|.
    assert float(out.errors.error.nan_to_num(0.0).max()) < 5e-5


def test_the_profile_finds_the_hard_part() -> None:
    """A narrow mixture resolves its modes late: an even grid has its largest errors there."""
    narrow = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double(), std=0.05, sde=SDE)
    errors = solve(
        SDE.probability_flow(narrow),
        X,
        solver="pf-ode",
        grid=torch.linspace(1, 0, 31).double(),
        errors=True,
    ).errors
    assert errors is not None
    assert float(errors.t[errors.error.mean(1).argmax(), 0]) < 0.4
