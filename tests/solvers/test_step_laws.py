"""The single-step, EDM, restart, iPNDM and ER-SDE solvers on every path, grid and budget."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import SOLVERS, solve

NAMES = ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "edm", "restart", "ipndm", "er-sde"]
ONE_PER_STEP = ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "ipndm", "er-sde"]
PATHS = [VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), Flow()]
MEANS = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]])
IRREGULAR = torch.tensor([1.0, 0.97, 0.6, 0.59, 0.585, 0.3, 0.05, 0.04, 0.001, 0.0])


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(MEANS, 0.3, sde=sde)


@pytest.mark.parametrize("name", NAMES)
def test_every_budget_is_met_by_formula(name: str) -> None:
    sde = VPSDE()
    solver = SOLVERS[name]
    process, x = sde.probability_flow(mixture(sde)), sde.prior((2, 2))
    for nfe in range(1, 51):
        out = solve(process, x, solver=name, nfe=nfe)
        assert out.nfe.tolist() == [solver.evaluations(len(out.times) - 1)] * 2
        assert int(out.nfe[0]) <= nfe < solver.evaluations(len(out.times))
        if name in ONE_PER_STEP:
            assert int(out.nfe[0]) == nfe


@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_samples_land_on_the_data(name: str, sde: SDE) -> None:
    process = sde.reverse(mixture(sde), eta=float(SOLVERS[name].stochastic))
    x = sde.prior((32, 2))
    for grid in ("uniform", "quadratic", "log-snr", "karras", "angle", IRREGULAR):
        budgets: list[int | None] = [None] if grid is IRREGULAR else [1, 2, 3, 7, 20]
        for nfe in budgets:
            out = solve(process, x, solver=name, nfe=nfe, grid=grid)
            # With few evaluations on such grids some leave their process; the last answer is data all the same.
            assert set(out.status) <= {"ok", "diverged"}
        if isinstance(grid, str):
            nearest = torch.cdist(out.x, MEANS).min(1).values
            assert float(nearest.median()) < 0.8, grid


@pytest.mark.parametrize("name", NAMES)
def test_dtype_shape_and_batch(name: str) -> None:
    sde = VPSDE()
    means = torch.linspace(-1, 1, 2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    process = sde.reverse(GaussianMixture(means, 0.3, sde=sde), eta=float(SOLVERS[name].stochastic))
    x = sde.prior((64, 3, 2, 2), seeds=range(64))
    whole = solve(process, x, solver=name, steps=11, seeds=range(64)).x
    part = solve(process, x[3:10], solver=name, steps=11, seeds=range(3, 10)).x
    alone = solve(process, x[5:6], solver=name, steps=11, seeds=[5]).x
    assert whole.dtype == torch.float32
    assert torch.allclose(part, whole[3:10], atol=2e-5)
    assert torch.allclose(alone, whole[5:6], atol=2e-5)
    double = solve(process, x.double(), solver=name, steps=11, seeds=range(64)).x
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), whole, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_steps_and_an_end_before_0(name: str) -> None:
    sde = VPSDE()
    process = sde.probability_flow(mixture(sde))
    out = solve(process, sde.prior((2, 2)), solver=name, grid=torch.linspace(1, 0.01, 1001).double())
    assert set(out.status) == {"ok"}
    assert out.nfe.tolist() == [SOLVERS[name].evaluations(1000, finish=False)] * 2
    assert float(torch.cdist(out.x, MEANS).min(1).values.max()) < 1.5


def test_without_noise_stochastic_heun_encodes_as_heun_does() -> None:
    """Towards alpha = 0, where the diffusion of a process with noise is infinite."""
    sde = CosineVPSDE()
    means = torch.tensor([[-0.5, 0.2], [0.7, 0.1]], dtype=torch.float64)
    ode = sde.probability_flow(GaussianMixture(means, std=0.3, sde=sde))
    grid = torch.linspace(0.01, 1, 21, dtype=torch.float64)
    x = means.repeat(3, 1) + 0.1
    found = solve(ode, x, solver="stochastic-heun", grid=grid)
    assert found.status == ["ok"] * 6
    assert torch.equal(found.x, solve(ode, x, solver="heun", grid=grid).x)
