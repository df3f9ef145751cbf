"""Compiles a deterministic solver with fixed steps to a table."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.fitted.table import _NOTHING, Row, Table
from solvers.integrate import solve
from solvers.planning import plan
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver


def compile_table(solver: Solver, path: Path, nfe: int, grid: str | Tensor | None = None) -> Table:
    """The table of coefficients of a deterministic solver with a fixed number of steps.

    Args:
        solver: the solver.
        path: the scales of the process.
        nfe: evaluations; the solver may use fewer.
        grid: as in ``solve``.

    Raises:
        ValueError: a solver that draws noise or chooses its own steps, whose coefficients depend on the sample,
            or whose evaluations cannot be ordered in time.

    >>> from solvers import SOLVERS, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> table = compile_table(SOLVERS["ddim"], straight, 2, torch.tensor([1.0, 0.5, 0.0]))
    >>> table.times, table.rows
    ((1.0, 0.5, 0.0), (Row(decay=0.5, weights=(0.5,)), Row(decay=0.0, weights=(1.0,))))
    """
    if solver.stochastic or solver.adaptive or solver.needs[0] is not ReverseProcess:
        raise InputError(f"only deterministic solvers with fixed steps compile to a table, not {type(solver).__name__}")
    states: list[Tensor] = []
    times: list[float] = []

    units = torch.eye(nfe + 1, dtype=torch.float64, device="cpu")

    def model(x: Tensor, t: Tensor) -> Tensor:
        states.append(x.clone())
        times.append(float(t[0]))
        return units[len(states), None]

    process = ReverseProcess(model, path)
    concrete, whole = plan(process, (1,), solver, nfe, grid=grid)
    concrete = concrete.on_grid()
    if not concrete.data_independent:
        raise InputError(
            f"{type(solver).__name__} is no table with {len(whole) - 1} steps on this grid: its coefficients "
            "depend on the sample"
        )
    states.append(solve(process, units[:1], solver=concrete, grid=whole).x)
    rows = []
    for i, (x, then) in enumerate(pairwise(states)):
        decay = float(then[0, 0] / x[0, 0]) if then[0, 0] != 0 else 0.0
        change = (then - decay * x)[0, 1 : i + 2].flip(0)
        change[change.abs() < _NOTHING * change.abs().max()] = 0
        used = int(change.nonzero().max()) + 1
        rows.append(Row(decay, tuple(change[:used].tolist())))
    return Table((*times, 0.0), tuple(rows), source=f"{type(solver).__name__} as a table").on(path)
