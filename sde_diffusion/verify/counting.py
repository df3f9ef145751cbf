"""Network evaluations: counted at the call, against the formula that a solver declares."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sde_diffusion.verify.declarations import formula, minimum
from sde_diffusion.verify.result import Check, refuses
from sde_diffusion.verify.targets import DTYPE, VP
from solvers import ReverseProcess, Solver, make_grid, solve, steps
from solvers.noise import Noise

_BUDGETS = range(1, 51)


class _Silent:
    """Zeros: the number of evaluations of a fixed-step solver does not depend on the noise."""

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        return torch.zeros_like(x)

    def rows(self, index: Tensor) -> Noise:
        return self


def evaluations(solver: Solver) -> Check | None:
    """For NFE of 1 to 50: counted == declared <= NFE, or a ValueError below the minimum."""
    if solver.adaptive:
        return None
    problem = ReverseProcess(lambda x, t: 0.5 * x, VP, eta=float(solver.stochastic))
    x, least, wrong, spent = torch.ones(1, 1, dtype=DTYPE), minimum(solver), [], []
    for n in _BUDGETS:
        if n < least:
            if not refuses(partial(solve, problem, x, solver=solver, nfe=n)):
                wrong.append(f"nfe={n} accepted, though one step takes {least}")
            continue
        intervals = solver.steps_for(n)
        declared = solver.evaluations(intervals)
        times = make_grid(solver.grid, problem, intervals)
        for step in steps(problem, x, times, solver, _Silent()):
            counted = int(step.nfe)
        spent.append(counted)
        if not counted == declared <= n:
            wrong.append(f"nfe={n}: counted {counted}, declared {declared}")
    return Check(
        "evaluations",
        not wrong,
        f"counted = {formula(solver)}, within 1 to 50",
        "; ".join(wrong[:3]) or "equal for every NFE",
        {"minimum": least, "counted": spent, "wrong": len(wrong)},
    )
