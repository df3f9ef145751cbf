"""Fixed-step solvers never wait for the device: they run where no value can be read at all.

The default, ``pf-ode``, reads a few values in its first evaluations, to see the scale of the data; with a given scale
it reads none.

Tensors of the device "meta" have shapes and no values: ``item()``, ``bool()``, a copy to the CPU and every index that
depends on values raise there. A loop that runs on them queues its work on a GPU without a synchronisation.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, ScoreModel
from solvers import SOLVERS, Solver, plan, steps
from solvers.fitted import seen_scale
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.planning import noise_of

WAITING = {"torchdiffeq", "scipy", "torchsde"}  # loops of other libraries
FIXED = {
    name: ProbabilityFlow(scale=1.0) if name == "pf-ode" else solver
    for name, solver in SOLVERS.items()
    if not solver.adaptive and name not in WAITING
}


def run(solver: Solver, output: Tensor | None = None) -> Tensor:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * x if output is None else output

    sde = VPSDE()
    process = sde.reverse(ScoreModel(network, sde, "velocity"), float(solver.stochastic))
    x = torch.zeros(3, 1, 4, 4, device="meta")
    solver, times = plan(process, x.shape[1:], solver, steps=6)
    noise = noise_of(process, solver, range(3), times, 3)
    for step in steps(process, x, times, solver, noise):
        x = step.x
    return x


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_step_solver_reads_no_value(name: str) -> None:
    assert run(FIXED[name]).shape == (3, 1, 4, 4)


def test_the_default_reads_values_to_see_the_scale_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run(SOLVERS["pf-ode"])
    looked = []

    def usual(x: Tensor, *_: object) -> Tensor:
        looked.append(1)
        return torch.zeros(len(x), dtype=torch.float64)

    monkeypatch.setattr(seen_scale, "scales_of", usual)
    assert run(SOLVERS["pf-ode"]).shape == (3, 1, 4, 4)
    assert len(looked) <= 2


def test_a_value_that_is_read_is_seen() -> None:
    class Reading(type(SOLVERS["euler"])):  # type: ignore[misc]
        def step(self, problem, x, t, s, state, noise):  # type: ignore[no-untyped-def]
            if bool((x > 1e6).any()):
                x = x / 2
            return super().step(problem, x, t, s, state, noise)

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run(Reading())
