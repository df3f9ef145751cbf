"""Tuning with a known mean in place of the first evaluation, and least squares with secant updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.tuning import tuned_each
from sde_diffusion.tuning.candidates import Found, fit_in_batches
from sde_diffusion.tuning.effort import Clock, Effort, Reporter
from sde_diffusion.tuning.fit import TableFit, TableParameters, descend, run, sensitivities
from sde_diffusion.tuning.task import Task
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from tests.evaluation_clock import evaluation_clock

EFFORT = Effort(32, 32, 200, 1.0, True, 0.0)
POINTS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -0.8]])


def problem(samples: int) -> tuple[GaussianMixture, TableFit]:
    model = GaussianMixture(POINTS, std=0.3, sde=VPSDE())
    x1 = model.sde.prior((samples, 2), seeds=range(samples), dtype=torch.float64)
    return model, TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, converged(model, x1, steps=200)[0])


@pytest.mark.slow
def test_a_known_mean_is_used_where_it_helps_and_left_out_where_it_is_refused() -> None:
    model = GaussianMixture(POINTS, std=0.15, sde=VPSDE())
    clock = evaluation_clock(model)
    found = {
        start: next(tuned_each(model, [3], minutes=0.05, progress=False, timer=clock, mean_start=start)).table
        for start in (True, False)
    }
    assert isinstance(found[True], MeanStart) and not isinstance(found[False], MeanStart)
    torch.testing.assert_close(torch.tensor(found[True].mean), POINTS.mean(0), rtol=0, atol=0.02)
    x1 = model.sde.prior((200, 2), seeds=range(200))
    truth, _ = converged(model, x1, steps=200)
    errors = {
        start: float(rms(solve(model.sde.probability_flow(model), x1, solver=solver, nfe=3).x - truth).mean())
        for start, solver in found.items()
    }
    assert errors[True] < 0.8 * errors[False]


def test_derivatives_with_a_mean_are_differences_of_whole_runs() -> None:
    model, fit = problem(4)
    fit = TableFit(fit.denoise, fit.sde, fit.x1, fit.x0, mean=POINTS.mean(0).double())
    parameters = TableParameters.around(compile_table(SOLVERS["ddim"], model.sde, 3), fit, 0.5)
    q = 0.01 * torch.ones(parameters.total, dtype=torch.float64)
    x, jacobian = sensitivities(parameters, q, fit)
    for k in range(parameters.total):
        moved = q.clone()
        moved[k] += 1e-6
        table = parameters.table(moved, fit)
        assert table is not None
        torch.testing.assert_close(jacobian[k], (run(table, fit) - x) / 1e-6, rtol=0.05, atol=5e-3)


def test_secant_updates_reach_a_smaller_error_with_the_same_derivatives() -> None:
    model, fit = problem(32)
    parameters = TableParameters.around(compile_table(SOLVERS["unipc"], model.sde, 4), fit, 0.6)

    def ends(q: Tensor) -> list[Tensor] | None:
        table = parameters.table(q, fit)
        return None if table is None else [run(table, fit)]

    def error(q: Tensor) -> float:
        found = ends(q)
        assert found is not None
        return float(fit.errors(found[0]).mean())

    def reached(secant: bool) -> float:
        derived, offered = 0, [torch.zeros(parameters.total, dtype=torch.float64)]

        def derivatives(q: Tensor) -> list[tuple[Tensor, Tensor]]:
            nonlocal derived
            derived += 1
            return [sensitivities(parameters, q, fit)]

        def accepted(q: Tensor) -> bool:
            offered.append(q)
            return True

        going = lambda fresh: not fresh or derived < 1  # noqa: E731
        descend(offered[0], ends, derivatives, [fit], [1.0], 20, accepted, going, secant)
        assert derived == 1 and len(offered) == 2  # the last of all secant steps
        return error(offered[-1])

    start = error(torch.zeros(parameters.total, dtype=torch.float64))
    assert reached(secant=True) < 0.8 * reached(secant=False) < 0.8 * start


def test_batches_keep_the_rows_of_their_samples() -> None:
    _, fit = problem(8)
    seen: list[list[int]] = []

    def denoise(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return x

    part = TableFit(denoise, fit.sde, fit.x1, fit.x0).section(3, 6)
    run(compile_table(SOLVERS["ddim"], fit.sde, 2), part)
    assert seen == [[3, 4, 5]] * 2
    assert torch.equal(part.x1, fit.x1[3:6]) and torch.equal(part.target, fit.target[3:6])


def test_batches_fit_all_samples_with_the_derivatives_of_one_batch_at_a_time() -> None:
    model, both = problem(64)
    widest = 0

    def denoise(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, len(x))
        return both.denoise(x, t, rows)

    fit = TableFit(denoise, both.sde, both.x1, both.x0).section(0, 32)
    task = Task(model, fit, both.section(32, 64), 0.0, EFFORT)
    found = Found(task, Reporter(None, Clock(None)))
    table = compile_table(SOLVERS["unipc"], model.sde, 4)
    start = found.tried("default", table)
    best = fit_in_batches(start, fit, found, 8, Clock(None), 0.0)
    parameters = TableParameters.around(table, fit, 0.6)
    assert widest <= 8 * (parameters.total + 1)  # those of one batch of 8
    assert best.error < 0.3 * start.error and found.error == best.error
    other = Found(task, Reporter(None, Clock(None)))
    few = fit_in_batches(other.tried("default", table), fit.section(0, 8), other, 8, Clock(None), 0.0)
    assert best.error < few.error < start.error  # one batch alone is fitted too closely
