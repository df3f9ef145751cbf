"""Runs in a loop of somebody else: whole, from the middle, and with a state that was changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDM, VPSDE, Flow, GaussianMixture
from sde_diffusion.interop.driven_run import DrivenRun, asked_times
from solvers import SOLVERS, plan, solve
from solvers.brownian_path import BrownianPath
from solvers.errors import InputError, StateError
from solvers.fitted.compile import compile_table

MEANS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
# annealed-langevin asks at the end of each step, from a rescaled state, and is refused.
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "annealed-langevin"]


def setting(name: str, sde: Any) -> tuple[GaussianMixture, Any]:
    model = GaussianMixture(MEANS, 0.3, sde=sde)
    return model, sde.reverse(model, float(SOLVERS[name].stochastic))


def through(run: DrivenRun, x: Tensor, model: Any, change: Any = lambda i, x: x) -> Tensor:
    while not run.done:
        t = torch.full((len(x),), run.asked.at[run.index], dtype=torch.float64)
        x = run.answer(x, model.denoise(x, t))
        x = x if run.done else change(run.index, x)
    return x


@pytest.mark.parametrize("sde", [VPSDE(), EDM(14.6), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", FIXED)
def test_a_whole_run_is_bit_equal_to_solve(name: str, sde: Any) -> None:
    model, problem = setting(name, sde)
    x1 = sde.prior((3, 3))
    asked = asked_times(problem, (3,), SOLVERS[name], nfe=11)
    seeds = torch.arange(3)
    run = DrivenRun(asked, lambda times: BrownianPath.along(seeds, problem.clock, times))
    out = solve(problem, x1, solver=name, nfe=11)
    assert torch.equal(through(run, x1, model), out.x)
    assert len(asked.at) == int(out.nfe[0]) and run.restarts == 0


@pytest.mark.parametrize("name", [n for n in FIXED if n != "adams"])
def test_a_late_start_is_a_solve_on_the_rest(name: str) -> None:
    model, problem = setting(name, VPSDE())
    asked = asked_times(problem, (3,), SOLVERS[name], nfe=13)
    index = next(i for i, node in enumerate(asked.nodes) if node is not None and i >= len(asked.at) // 2)
    node = asked.nodes[index]
    assert node is not None
    x = torch.randn(3, 3)
    rest = asked.times[node:]
    noise = BrownianPath.along(torch.arange(3), problem.clock, rest)
    run = DrivenRun(asked, lambda times: noise)
    run.begin_at(index)
    expected = solve(problem, x, solver=name, grid=rest).x
    assert torch.equal(through(run, x, model), expected)


def test_a_changed_state_begins_the_history_again() -> None:
    model, problem = setting("unipc", VPSDE())
    asked = asked_times(problem, (3,), SOLVERS["unipc"], nfe=8)
    kept: list[Tensor] = []

    def change(i: int, x: Tensor) -> Tensor:
        if i == 3:
            kept.append(x + 0.5)
            return kept[0]
        return x.clone()  # a copy is no change

    run = DrivenRun(asked)
    found = through(run, VPSDE().prior((2, 3)), model, change)
    assert run.restarts == 1
    assert torch.equal(found, solve(problem, kept[0], solver="unipc", grid=asked.times[3:]).x)


@pytest.mark.parametrize("name", ["heun", "pc", "adams"])
def test_a_change_inside_a_step_is_refused(name: str) -> None:
    model, problem = setting(name, VPSDE())
    run = DrivenRun(asked_times(problem, (3,), SOLVERS[name], nfe=9))
    with pytest.raises(InputError, match="no beginning of a step"):
        through(run, VPSDE().prior((2, 3)), model, lambda i, x: x + 1)


def test_a_table_begins_at_its_start_alone() -> None:
    model, problem = setting("unipc", VPSDE())
    times = plan(problem, (3,), "unipc", nfe=6)[1]
    table = compile_table(SOLVERS["unipc"], problem.path, 6, times)
    run = DrivenRun(asked_times(problem, (3,), table, nfe=6))
    with pytest.raises(InputError, match="Table cannot begin at step 3 of 6"):
        through(run, VPSDE().prior((2, 3)), model, lambda i, x: x + 1 if i == 2 else x)


def test_misuse_is_refused() -> None:
    _, problem = setting("ddim", VPSDE())
    with pytest.raises(InputError, match="fixed"):
        asked_times(problem, (3,), SOLVERS["rk45"], nfe=9)
    run = DrivenRun(asked_times(problem, (3,), SOLVERS["ddim"], nfe=1))
    with pytest.raises(InputError, match="evaluation 5 of 1"):
        run.begin_at(5)
    x = run.answer(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(StateError, match="is over"):
        run.answer(x, x)


def test_a_solver_that_does_not_ask_at_the_start_is_refused() -> None:
    _, problem = setting("annealed-langevin", VPSDE())
    with pytest.raises(InputError, match="AnnealedLangevin asks the model elsewhere than at the start"):
        asked_times(problem, (3,), SOLVERS["annealed-langevin"], nfe=11)
