r"""The default: the best fixed-budget deterministic solver of this library, whatever that is at the time.

For few steps it is a table (``solvers.table``), one for each number of steps, fitted to a family of models at once:
mixtures of Gaussians on images and in the plane, Gaussians with the spectra of images, and one trained network. Made by
``benchmarks/design.py``, evidence in docs/decisions.md; the numbers, in ``pf_ode.json``, are those of

    z_{i+1} = a_i z_i + sum_j b_ij D_j,      z = x / alpha,   at given rho = sigma / alpha,

so one table serves every path; z_0 is divided by sqrt(1 + rho_0^2) in its first row, and may start from any large rho.

For other numbers of steps, and on a grid of one's own, it is the data form of the exponential engine with the
corrector: beyond 12 steps polynomials in t through four values, of order 5, on t = u^2.5 (u^2.25 from 40 steps up)
down to rho = 3 / steps^2; with fewer through two values, in lambda up to 6 steps and in t up to 12.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from solvers.exponential import ExponentialAdams, Update
from solvers.grids import GRIDS, power, time_at
from solvers.noise import Noise
from solvers.problem import KnownTimes, Path, ReverseProcess
from solvers.solver import Estimate, Solver, rms_of_sum
from solvers.table import Row, Table

_FEW = ExponentialAdams(2, variable="lambda", corrector=True)
_SOME = ExponentialAdams(2, variable="time", corrector=True)
_MANY = ExponentialAdams(4, variable="time", corrector=True)
_SOME_STEPS = 12
_LOWER = ExponentialAdams(2, variable="time")
_FINE = 40  # steps from which the grid may be less dense near the data

# A table is used where the path starts at this many times its second rho at least.
_ROOM = 1.25


@lru_cache(maxsize=1)
def _fitted() -> dict[int, dict[str, Any]]:
    """The content of ``pf_ode.json`` by number of steps."""
    tables = json.loads(File(__file__).with_suffix(".json").read_text())["tables"]
    return {len(entry["rows"]): entry for entry in tables}


@lru_cache(maxsize=256)
def fitted_table(path: Path, steps: int) -> Table | None:
    """The fitted table for a number of steps on a path; None where there is none, or the path starts too low.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> len(fitted_table(straight, 8).rows), fitted_table(straight, 1000)
    (8, None)
    """
    entry = _fitted().get(steps)
    if entry is None:
        return None
    alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64))[:2])
    rho = torch.tensor(entry["rho"], dtype=torch.float64)
    if len(rho) and sigma < _ROOM * float(rho[0]) * alpha:
        return None
    times = [1.0, *time_at(path, -torch.log(rho)).tolist(), 0.0]
    scale = [math.hypot(alpha, sigma), *path(torch.tensor(times[1:], dtype=torch.float64)).alpha.tolist()]
    rows = tuple(
        Row(decay * scale[i + 1] / scale[i], tuple(weight * scale[i + 1] for weight in weights))
        for i, (decay, weights) in enumerate(entry["rows"])
    )
    return Table(tuple(times), rows, "solvers/pf_ode.json")


def table_entry(path: Path, table: Table) -> dict[str, Any]:
    """A table as ``pf_ode.json`` holds it: the inverse of ``fitted_table``."""
    alpha, sigma = (c.tolist() for c in path(torch.tensor(table.times, dtype=torch.float64))[:2])
    scale = [math.hypot(alpha[0], sigma[0]), *alpha[1:]]
    rows = [
        [row.decay * scale[i] / scale[i + 1], [weight / scale[i + 1] for weight in row.weights]]
        for i, row in enumerate(table.rows)
    ]
    return {"rho": [s / a for s, a in zip(sigma[1:-1], alpha[1:-1], strict=True)], "rows": rows}


def _grid(path: Path, steps: int) -> Tensor:
    """The times of the table, or those of the engine."""
    table = fitted_table(path, steps)
    if table is not None:
        return torch.tensor(table.times, dtype=torch.float64)
    if steps <= _SOME_STEPS:
        return GRIDS["power"](path, steps)
    # Smaller than about 1e-3 the noise is below what networks are trained on.
    low = torch.tensor(max(3 / steps**2, 1e-3), dtype=torch.float64)
    return power(steps, time_at(path, -torch.log(low)), 2.5 if steps < _FINE else 2.25)


GRIDS["fitted"] = _grid


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """The fitted table for the number of steps, or the member of the exponential engine that suits it.

    >>> from solvers import SOLVERS
    >>> SOLVERS["pf-ode"].evaluations(steps=8)
    8
    """

    order = 5
    needs = (ReverseProcess,)
    finishes = True
    redoes = True
    grid = "fitted"
    source = "docs/decisions.md, on Zhao et al. 2023 and Shaul et al. 2024"

    def member(self, path: Path, times: Tensor) -> Solver:
        """The solver that runs a grid: the table if the grid is the table's, else one of the exponential engine."""
        table = fitted_table(path.path if isinstance(path, KnownTimes) else path, len(times) - 1)
        if table is not None and table.times == tuple(times.tolist()):
            return table
        return _FEW if len(times) <= 7 else _SOME if len(times) <= _SOME_STEPS + 1 else _MANY

    def init(self, problem: ReverseProcess, times: Tensor) -> Any:
        """The member for this grid, and its state."""
        member = self.member(problem.path, times)
        return member, member.init(problem, times)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One step of the member."""
        member, inner = state
        if not member.finishes and float(problem.path(s).sigma) == 0:
            return problem.finish(x, t), s, state
        x, s, inner = member.step(problem, x, t, s, inner, noise)
        return x, s, (member, inner)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: Any, after: Any
    ) -> Estimate | None:
        """The engine's own; of a table, how far its step is from that of the data form with two values."""
        member = before[0]
        if not isinstance(member, Table):
            return None if before is after else member.estimate(problem, x, t, s, before[1], after[1])
        i = before[1].number
        decay, weights = member.rows[i]
        lower = Update(0.0, (1.0,), 0.0)
        if i + 1 < len(member.rows):
            step = _LOWER.plan(problem.path, 0.0, member.times)[i]
            if step.order == 0:
                return None
            lower = step.predictor
        apart = [a - b for a, b in zip_longest(weights, lower.weights, fillvalue=0.0)]
        values = (after[1].values[0], *before[1].values)
        return Estimate(t, s, rms_of_sum((decay - lower.decay, *apart), (x, *values)))
