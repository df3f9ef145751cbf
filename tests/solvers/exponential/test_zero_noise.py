"""The extrapolation of D to zero noise: exact where one width explains the changes, and D_N where none does."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, Gaussian, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import solve
from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.exponential.zero_noise import ZeroNoise
from solvers.grids import time_at
from solvers.noise import NoNoise

RHO = (0.6, 0.25, 0.1)
PLAIN = VariableOrder(ExponentialAdams(5, variable="time", corrector=True), fewest=2)
SOLVER = replace(PLAIN, extrapolated=True)


def along_the_flow(x0: Tensor, mean: Tensor, c: Tensor, rho: tuple[float, ...] = RHO) -> list[Tensor]:
    """D of Gaussian data along the flow that ends in x0, newest first."""
    return [mean + (x0 - mean) / torch.sqrt(1 + (level / c) ** 2) for level in reversed(rho)]


def test_gaussian_data_of_any_width_are_exact() -> None:
    g = torch.Generator().manual_seed(0)
    x0, mean = torch.randn(2, 40, 3, 4, generator=g, dtype=torch.float64)
    c = torch.logspace(math.log10(0.06), 1.5, 40, dtype=torch.float64).reshape(40, 1, 1)
    for rho in (RHO, (math.inf, 0.25, 0.1)):
        values = along_the_flow(x0, mean, c, rho)
        left = (values[0] - x0).flatten(1).norm(dim=1)
        error = (ZeroNoise.of(rho)(values) - x0).flatten(1).norm(dim=1)
        assert (error < 1e-3 * left).all()  # of the nodes in c


def test_a_point_mass_is_exact_and_units_and_axes_do_not_matter() -> None:
    end = ZeroNoise.of(RHO)
    point = torch.full((2, 5), 0.3)
    assert torch.equal(end([point] * 3), point)
    g = torch.Generator().manual_seed(1)
    values = list(torch.randn(3, 6, 5, generator=g, dtype=torch.float64).cumsum(0))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    x0 = end(values)
    torch.testing.assert_close(end([100 * v @ turn + 3 for v in values]), 100 * x0 @ turn + 3)
    torch.testing.assert_close(ZeroNoise.of([7 * level for level in RHO])(values), x0)
    for k in range(6):
        assert torch.equal(end([v[k : k + 1] for v in values]), x0[k : k + 1])


def test_the_error_on_smooth_data_is_of_order_six_in_the_noise_levels() -> None:
    widths = torch.tensor([0.5, 1.0, 3.0, 4.0], dtype=torch.float64)
    x0 = torch.tensor([[1.0, -0.7, 0.5, 0.2]], dtype=torch.float64)
    errors = []
    for factor in (0.5, 0.25):
        rho = tuple(factor * level for level in RHO)
        errors.append(float((ZeroNoise.of(rho)(along_the_flow(x0, 0 * x0, widths, rho)) - x0).norm()))
    assert 45 < errors[0] / errors[1] < 90
    assert errors[1] < 1e-3 * float((along_the_flow(x0, 0 * x0, widths, rho)[0] - x0).norm())


def test_values_that_have_converged_or_are_rough_end_at_the_last() -> None:
    end, last = ZeroNoise.of(RHO), torch.tensor([[0.5, -0.2]])
    before = last - torch.tensor([[0.1, 0.0]])
    for earlier_change in ((-0.1, 0.0), (0.0, 0.1)):  # changes that turn back, and to the side
        assert torch.equal(end([last, before, before - torch.tensor([earlier_change])]), last)
    slow = end([last, before, before - torch.tensor([[10.0, 0.0]])])  # falls by more than a smooth function
    assert 0 < float((slow - last).norm()) < 0.01


def test_noise_levels_that_do_not_decrease_to_above_zero_are_refused() -> None:
    for rho in ((0.5, 0.2), (0.1, 0.2, 0.3), (0.5, 0.2, 0.0), (0.5, 0.2, math.nan)):
        with pytest.raises(InputError, match="three noise levels that decrease"):
            ZeroNoise.of(rho)


def test_runs_of_a_solver_end_at_the_data_with_a_fraction_of_the_error() -> None:
    g = torch.Generator().manual_seed(2)
    model = GaussianMixture(0.6 * torch.randn(20, 30, generator=g, dtype=torch.float64), std=0.1, sde=VPSDE())
    x1 = model.sde.prior((16, 30), seeds=range(16), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=300)
    ode = model.sde.probability_flow(model)
    middle = time_at(model.sde, -torch.linspace(math.log(40), math.log(0.1), 15, dtype=torch.float64))
    grid = [1.0, *middle.tolist(), 0.0]
    runs = [solve(ode, x1, solver=solver, grid=grid) for solver in (PLAIN, SOLVER)]
    assert runs[1].nfe.tolist() == [16] * 16
    before, after = (float(rms(run.x - truth).median()) for run in runs)
    assert after < 0.1 * before, (before, after)


def test_the_last_state_is_corrected_as_before_a_further_step() -> None:
    model = Gaussian(torch.zeros(3), torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64), sde=VPSDE())
    ode, x1 = model.sde.probability_flow(model), model.sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    grid = torch.tensor([1.0, 0.7, 0.45, 0.3, 0.2, 0.12, 0.0], dtype=torch.float64)
    further = torch.cat([grid[:-1], torch.tensor([0.1], dtype=torch.float64)])
    state, x = SOLVER.init(ode, further), x1
    for t, s in pairwise(further):
        last = x
        x, _, state = SOLVER.step(ode, x, t, s, state, NoNoise())
    base, values = state.history.base, state.history.values
    assert base is not None and float((base - last).abs().max()) > 1e-3
    alpha, sigma = model.sde.marginal(grid[-4:-1])
    expected = ZeroNoise.of((sigma / alpha).tolist())(values) + (base - last) / alpha[-1]
    torch.testing.assert_close(solve(ode, x1, solver=SOLVER, grid=grid).x, expected, rtol=0, atol=1e-12)


def test_it_changes_the_last_step_alone() -> None:
    model = Gaussian(torch.zeros(3), torch.tensor([1.0, 0.3, 0.01]), sde=VPSDE())
    ode = model.sde.probability_flow(model)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x1 = model.sde.prior((4, 3), seeds=range(4), dtype=dtype)
        paths = [solve(ode, x1, solver=solver, nfe=8, trajectory=True).trajectory for solver in (PLAIN, SOLVER)]
        assert paths[0] is not None and paths[1] is not None and paths[1].dtype == dtype
        assert torch.equal(paths[0][:-1], paths[1][:-1]) and not torch.equal(paths[0][-1], paths[1][-1])
    for few in ({"nfe": 1}, {"nfe": 2}, {"grid": [1.0, 0.5, 0.2, 0.1]}):  # no three values, and no end at the data
        plain, same = (solve(ode, x1, solver=solver, **few).x for solver in (PLAIN, SOLVER))
        assert torch.equal(plain, same)


def test_only_methods_that_interpolate_the_data_prediction_are_extrapolated() -> None:
    with pytest.raises(InputError, match="form='data'"):
        VariableOrder(ExponentialAdams(5, form="noise"), extrapolated=True)
