"""Rows that follow the reference solution: exact where one row can be, and a better start than what they replace."""

from __future__ import annotations

import math

import torch

from sde_diffusion import VPSDE, Gaussian, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.reference_states import ReferencePath
from sde_diffusion.tuning import tuned_for
from sde_diffusion.tuning.fit import TableFit, run
from sde_diffusion.tuning.path_stages import _Base, _best_of_each_start, _Followed
from sde_diffusion.tuning.row_fit import fitted_rows
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table
from tests.evaluation_clock import evaluation_clock


def fit_and_path(model, n: int, steps: int = 64):
    x1 = model.sde.prior((n, *model.shape), seeds=range(n), dtype=torch.float64)
    path = ReferencePath(model, x1, steps)
    x0, _ = converged(model, x1, steps=steps, on_state=path.keep)
    return TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, x0), path


def test_one_dimension_is_followed_from_time_to_time() -> None:
    """On a Gaussian of one variance every step is linear in x, so the rows reach the path itself."""
    model = Gaussian(torch.zeros(2), torch.full((2,), 0.09), sde=VPSDE())
    fit, path = fit_and_path(model, 32)
    base = compile_table(SOLVERS["ddim"], model.sde, 3)
    made, error = fitted_rows(fit, base, path.at(base.times))
    assert error == float(fit.errors(run(made, fit)).mean())
    assert made.times == base.times
    before, after = (float(fit.errors(run(table, fit)).mean()) for table in (base, made))
    assert after < 0.02 * before, (before, after)


def test_rows_are_a_better_start_on_other_noise_too() -> None:
    g = torch.Generator().manual_seed(0)
    model = GaussianMixture(torch.randn(6, 3, dtype=torch.float64, generator=g), std=0.3, sde=VPSDE())
    fit, path = fit_and_path(model, 64)
    base = compile_table(SOLVERS["unipc"], model.sde, 6)
    made, _ = fitted_rows(fit, base, path.at(base.times))
    x1 = model.sde.prior((64, 3), seeds=range(500, 564), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=128)
    ode = model.sde.probability_flow(model)
    before, after = (float(rms(solve(ode, x1, solver=t, nfe=6).x - truth).mean()) for t in (base, made))
    assert after < 0.8 * before, (before, after)


def test_the_path_is_that_of_the_exact_flow() -> None:
    model = Gaussian(torch.zeros(1), torch.full((1,), 0.04), sde=VPSDE())
    fit, path = fit_and_path(model, 8, 200)
    times = [1.0, 0.6, 0.11, 0.0]
    for t, x in zip(times, path.at(times), strict=True):
        torch.testing.assert_close(x.double(), model.flow(fit.x1, 1.0, t), rtol=1e-3, atol=1e-4)


def test_tuning_for_a_time_uses_the_path() -> None:
    model = Gaussian(torch.zeros(2), torch.tensor([1.0, 0.04]), sde=VPSDE())
    found = tuned_for(model, [4], minutes=0.02, timer=evaluation_clock(model, 1e-4), progress=False)[4]
    assert "rows" in found.stages and found.error < 0.5 * found.default_error


def test_the_best_that_starts_with_the_mean_and_the_best_that_does_not() -> None:
    table = compile_table(SOLVERS["ddim"], VPSDE(), 2)
    means = [torch.zeros(2), None, torch.zeros(2), None, None]
    errors = [0.4, 0.2, 0.3, math.inf, 0.1]
    ranked = [_Followed(_Base(table, mean), error) for mean, error in zip(means, errors, strict=True)]
    assert [one.error for one in _best_of_each_start(ranked)] == [0.3, 0.1]
    assert [one.error for one in _best_of_each_start(ranked[1:2])] == [0.2]
