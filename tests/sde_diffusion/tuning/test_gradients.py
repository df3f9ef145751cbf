"""Least squares of tables with the gradients of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.tuning.candidates import Found, Tried
from sde_diffusion.tuning.effort import Clock, Effort, Reporter
from sde_diffusion.tuning.fit import Denoise, TableFit, TableParameters, run, sensitivities
from sde_diffusion.tuning.gradients import projected_fit
from sde_diffusion.tuning.gradients.adjoint import Gradients, Projections, gradients_of, projections
from sde_diffusion.tuning.gradients.projected_fit import Gradient, PooledMatrix, fit_projected, step
from sde_diffusion.tuning.task import Task
from solvers import SOLVERS
from solvers.fitted.compile import compile_table
from tests.evaluation_clock import evaluation_clock

POINTS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -0.8]])


def problem(samples: int) -> tuple[GaussianMixture, TableFit]:
    model = GaussianMixture(POINTS, std=0.3, sde=VPSDE())
    x1 = model.sde.prior((samples, 2), seeds=range(samples), dtype=torch.float64)
    return model, TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, converged(model, x1, steps=200)[0])


@pytest.mark.parametrize("mean", [None, POINTS.mean(0).double()])
def test_rows_of_the_jacobian_agree_with_differences(mean: Tensor | None) -> None:
    model, fit = problem(6)
    fit = TableFit(fit.denoise, fit.sde, fit.x1, fit.x0, mean=mean)
    parameters = TableParameters.around(compile_table(SOLVERS["unipc"], model.sde, 4), fit, 0.5)
    q = 0.01 * torch.ones(parameters.total, dtype=torch.float64)
    x, jacobian = sensitivities(parameters, q, fit)
    rows = projections(parameters, q, fit, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.residuals, fit.residuals(x), rtol=1e-6, atol=1e-9)
    along = rows.residuals / rows.residuals.norm(dim=1, keepdim=True)
    expected = torch.einsum("kbd,bd->bk", jacobian, along)
    assert float((rows.along - expected).norm() / expected.norm()) < 0.02
    # In two dimensions all directions orthogonal to r are multiples of one.
    one = torch.einsum("kbd,bd->bk", jacobian, torch.stack([-along[:, 1], along[:, 0]], 1))
    for row in rows.across:
        factor = (row * one).sum(1, keepdim=True) / one.square().sum(1, keepdim=True)
        assert float((row - factor * one).norm() / row.norm()) < 0.02


def test_gradients_are_used_where_they_are_right() -> None:
    model, fit = problem(8)
    table = compile_table(SOLVERS["ddim"], model.sde, 4)

    def found(denoise: Denoise) -> Gradients | None:
        return gradients_of(TableFit(denoise, fit.sde, fit.x1, fit.x0), table)

    def through_numpy(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return model.denoise(torch.from_numpy(x.numpy()), t)

    whole = found(fit.denoise)
    assert whole is not None and whole.times and whole.most > 1000
    without_times = found(lambda x, t, rows: model.denoise(x, t.detach()))
    assert without_times is not None and not without_times.times
    assert found(through_numpy) is None
    assert found(lambda x, t, rows: model.denoise(x, t).detach()) is None
    assert found(lambda x, t, rows: model.denoise(x.detach(), t) + 0 * x) is None  # a gradient, but a wrong one


def test_columns_of_times_are_zero_without_their_derivative() -> None:
    model, fit = problem(4)
    parameters = TableParameters.around(compile_table(SOLVERS["ddim"], model.sde, 3), fit, 0.5)
    q, generator = torch.zeros(parameters.total, dtype=torch.float64), torch.Generator().manual_seed(0)
    some = projections(parameters, q, fit, 0, generator, times=False).along
    every = projections(parameters, q, fit, 0, generator).along
    assert bool((some[:, parameters.weights :] == 0).all()) and bool((every[:, parameters.weights :] != 0).all())
    assert torch.equal(some[:, : parameters.weights], every[:, : parameters.weights])


def test_a_projected_fit_sees_every_sample_and_lowers_the_error() -> None:
    model, both = problem(64)
    clock, seen = evaluation_clock(model), set[int]()

    def denoise(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        seen.update(rows.tolist())
        return model.denoise(x, t)

    fit, held = TableFit(denoise, both.sde, both.x1, both.x0).section(0, 31), both.section(31, 64)
    limit = Clock(31 * 4 * 60 * 1e-5, clock)
    found = Found(Task(model, fit, held, 0.0, Effort(31, 33, 200, 1.0, True, 1e-5)), Reporter(None, limit))
    table = compile_table(SOLVERS["unipc"], model.sde, 4)
    start = Tried(float(held.errors(run(table, held)).mean()), table)
    found.offer("default", table)
    with torch.no_grad():
        best = fit_projected(start, fit, found, Gradients(True, 512), limit, 4e-5)
    assert seen == set(range(31))
    assert best.error < 0.5 * start.error
    assert best.error == found.error == float(held.errors(run(best.table, held)).mean())


def test_a_fit_ends_where_derivatives_are_not_finite() -> None:
    model, fit = problem(8)
    task: Any = Task(model, fit, fit, 0.0, Effort(8, 8, 200, 1.0, True, 1e-5))
    table = compile_table(SOLVERS["ddim"], model.sde, 3)
    broken = TableFit(lambda x, t, rows: x * float("nan"), fit.sde, fit.x1, fit.x0)
    start = Tried(1.0, table)
    limit = Clock(None)
    assert fit_projected(start, broken, Found(task, Reporter(None, limit)), Gradients(True, 8), limit, 1e-5) is start


def test_gradients_of_earlier_parameters_are_moved_to_the_newest() -> None:
    """Of quadratics all gradients lead to the same minimum, wherever they were found."""
    a, least = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), torch.tensor([1.0, -2.0]).double()
    found = [torch.zeros(2).double(), torch.tensor([3.0, 1.0]).double()]
    known = [Gradient(q, a @ (q - least)) for q in found]
    torch.testing.assert_close(step(a, known, found[1], 0.0), least, rtol=0, atol=0.02)  # the ridge is 0.001


def test_random_rows_of_a_sample_are_a_mean() -> None:
    r, along = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    across = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]).double()
    matrix = PooledMatrix(2)
    matrix.add(Projections(r, along, across))
    weight = 0.5  # 1 / 2 entries
    expected = weight * (along.T @ along + torch.tensor([[1.0, 0.0], [0.0, 9.0]]).double() / 2)
    once = PooledMatrix(2)
    once.add(Projections(r, along, across[:0]))
    torch.testing.assert_close(once.mean, weight * along.T @ along)
    torch.testing.assert_close(matrix.mean, expected)


def test_steps_without_a_gain_are_damped_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fit = problem(16)
    task: Any = Task(model, fit, fit, 0.0, Effort(16, 16, 200, 1.0, True, 1e-5))
    table = compile_table(SOLVERS["unipc"], model.sde, 3)
    seen: list[float] = []

    def without_gain(a: Tensor, known: Any, q: Tensor, damping: float) -> Tensor:
        seen.append(damping)
        return q + 10.0

    monkeypatch.setattr(projected_fit, "step", without_gain)
    start, limit = Tried(float(fit.errors(run(table, fit)).mean()), table), Clock(None)
    with torch.no_grad():
        found = fit_projected(start, fit, Found(task, Reporter(None, limit)), Gradients(True, 512), limit, 1e-5)
    assert found is start
    assert seen[:4] == pytest.approx([0.01, 0.06, 0.36, 2.16])
