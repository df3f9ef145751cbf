"""A run driven from outside is the run of ``solve``, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDM, VPSDE, GaussianMixture
from solvers import SOLVERS, Equation, ReverseProcess, evaluation_times, evaluations, plan, solve
from solvers.brownian_path import BrownianPath
from solvers.errors import InputError

MEANS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]
ADAPTIVE = [name for name, solver in SOLVERS.items() if solver.adaptive]


def drive(run, model: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The sample, and the times at which the model was asked."""
    times = []
    try:
        x, t = next(run)
        while True:
            times.append(t)
            x, t = run.send(model(x, t))
    except StopIteration as end:
        return end.value, times


def process(name: str, sde=None) -> tuple[GaussianMixture, ReverseProcess]:
    model = GaussianMixture(MEANS, std=0.3, sde=sde or VPSDE())
    return model, model.sde.reverse(model, float(SOLVERS[name].stochastic))


@pytest.mark.parametrize("nfe", [1, 2, 9, 18])
@pytest.mark.parametrize("name", FIXED)
def test_a_driven_run_is_that_of_solve(name: str, nfe: int) -> None:
    model, problem = process(name)
    x1 = model.sde.prior((4, 3))
    out = solve(problem, x1, solver=name, nfe=nfe)
    x, asked = drive(evaluations(problem, x1, out.times, name), model.denoise)
    assert torch.equal(x, out.x)
    assert [len(asked)] * 4 == out.nfe.tolist()
    assert evaluation_times(problem, (3,), out.times, name) == [float(t[0]) for t in asked]


@pytest.mark.parametrize("name", ["pf-ode", "sde", "heun", "pc", "ddpm"])
def test_the_noise_is_the_callers(name: str) -> None:
    model, problem = process(name, EDM())
    x1 = model.sde.prior((4, 3))
    solver, times = plan(problem, (3,), name, nfe=12)
    seeds = torch.tensor([5, 6, 7, 8])
    noise = BrownianPath.along(seeds, problem.clock, times)
    x, _ = drive(evaluations(problem, x1, times, solver, noise), model.denoise)
    assert torch.equal(x, solve(problem, x1, solver=name, nfe=12, seeds=seeds).x)


@pytest.mark.parametrize("nfe", [None, 40])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_run_asks_for_the_samples_that_are_left(name: str, nfe: int | None) -> None:
    model, problem = process(name)
    x1 = model.sde.prior((3, 3))
    out = solve(problem, x1, solver=name, nfe=nfe)
    run, count = evaluations(problem, x1, out.times, name, nfe=nfe), torch.zeros(3, dtype=torch.int64)
    try:
        request = next(run)
        while True:
            count[slice(None) if request.rows is None else request.rows] += 1
            request = run.send(model.denoise(*request))
    except StopIteration as end:
        assert torch.equal(end.value, out.x)
    assert torch.equal(count, out.nfe)
    with pytest.raises(InputError, match="adaptive"):
        evaluation_times(problem, (3,), out.times, name)


def test_of_an_equation_the_drift_is_wanted() -> None:
    grid = [0.0, 0.25, 1.0]
    x, asked = drive(evaluations(Equation(lambda x, t: x), torch.ones(2, 1), grid, "heun"), lambda x, t: -x)
    assert torch.equal(x, solve(Equation(lambda x, t: -x), torch.ones(2, 1), solver="heun", grid=grid).x)
    assert [float(t[0]) for t in asked] == [0.0, 0.25, 0.25, 1.0]


def test_an_answer_of_another_shape_is_refused() -> None:
    run = evaluations(process("ddim")[1], torch.ones(2, 3), [1.0, 0.5, 0.0], "ddim")
    next(run)
    with pytest.raises(InputError, match=r"shape of its input: got \(1, 3\)"):
        run.send(torch.ones(1, 3))


def test_what_no_run_can_start_with_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="floating point"):
        evaluations(process("ddim")[1], torch.ones(2, 3, dtype=torch.int64), [1.0, 0.0], "ddim")
    with pytest.raises(InputError, match="draws no noise"):
        evaluations(process("ddpm")[1], torch.ones(2, 3), [1.0, 0.0], "ddim")
