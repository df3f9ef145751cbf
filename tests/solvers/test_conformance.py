"""Every solver in the table passes every check; a new line is tested at once."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.verify import CHECKS, run_check
from sde_diffusion.verify.targets import mixture, process, start
from solvers import SOLVERS, make_grid, solve

# Slow because of the number of runs, or of Brownian paths asked by each sample at times of its own.
LONG = {"matrix", "strong", "refinement"}


def _cases() -> list[object]:
    cases: list[object] = []
    for name, solver in SOLVERS.items():
        for check in CHECKS:
            slow = check in LONG or (solver.adaptive and solver.stochastic)
            marks = [pytest.mark.slow] if slow else []
            cases.append(pytest.param(name, check, marks=marks, id=f"{name}-{check}"))
    return cases


@pytest.mark.parametrize(("name", "check"), _cases())
def test_solver(name: str, check: str) -> None:
    found = run_check(check, SOLVERS[name])
    assert found is None or found.passed, f"expected {found.expected}; measured {found.measured}"


@pytest.mark.parametrize("name", SOLVERS)
def test_declares_what_is_measured(name: str) -> None:
    solver = SOLVERS[name]
    assert solver.source
    if solver.strong_order is not None:
        assert solver.stochastic
    least = solver.evaluations(1)
    assert solver.evaluations(1, finish=True) == least == 1 or solver.adaptive
    with pytest.raises(ValueError, match=f"needs at least {least}|take|at least 1"):
        solve(process(mixture(), solver), start(1), solver=solver, nfe=least - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if not s.adaptive])
def test_a_thousand_steps(name: str) -> None:
    solver = SOLVERS[name]
    problem = process(mixture(), solver)
    times = make_grid(solver.grid, problem, 1000)
    assert times.shape == (1001,)
    assert float(times[0]) == 1 and float(times[-1]) == 0
    assert bool((times.diff() < 0).all())
    out = solve(problem, start(2), solver=solver, grid=times)
    assert bool(torch.isfinite(out.x).all())
    assert set(out.nfe.tolist()) == {solver.evaluations(1000)}
