r"""A solver as a table of numbers: the times of one run, and the weights of each of its steps.

Every deterministic solver that evaluates the model once at each of N times t_0 > ... > t_{N-1} is linear in
what the model returned, D_i = D(x_i, t_i):

    x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j,        x_0 = x_T,      i = 0, ..., N - 1.

Singlestep methods are of this form too, with their stages as times of the table, since a stage before the last one
can be solved for the x it started from. ``compile_table`` finds the numbers by running the solver once on unit
vectors, with a model that returns the next unit vector at each call and keeps the x it was asked for.

A table is the cheapest loop there is, a thing that can be written to a file, and a starting point: tuning changes its
numbers until the samples of one model with N evaluations are as near as possible to the converged ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.grids import make_grid
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver

# Weights this small against the largest of a row are rounding of the unit-vector run.
_NOTHING = 1e-12


class Row(NamedTuple):
    """x_{i+1} = decay x_i + sum_j weights[j] D_{i-j}: the newest first, trailing zeros left out."""

    decay: float
    weights: tuple[float, ...]


class History(NamedTuple):
    """How many rows are done, and what the model returned, newest first."""

    number: int
    values: tuple[Tensor, ...]


class OwnGrid(Solver):
    """A solver for one grid, its own, and so for one number of evaluations."""

    order = 0
    needs = (ReverseProcess,)
    finishes = True
    redoes = True  # some do; the numbers do not say which

    def steps_for(self, evaluations: int, finish: bool = True) -> int:
        """Its own number of evaluations.

        Raises:
            ValueError: another budget.
        """
        steps = len(self.grid) - 1
        if evaluations != steps:
            raise ValueError(
                f"this solver was made for {steps} evaluations, not for {evaluations}; give it nfe = {steps}, or make "
                "one for your budget"
            )
        return evaluations


@dataclass(frozen=True)
class Table(OwnGrid):
    """One run of N evaluations, as numbers.

    Args:
        times: t_0 > ... > t_{N-1} > 0, and a last 0: the first is where x starts, the last where it ends.
        rows: one for each evaluation.
        source: where the numbers come from.
        rho: sigma / alpha at the times between the first and the last, where the table is for one path: on another
            it is refused.

    Raises:
        ValueError: times that do not decrease to 0, or not one row for each evaluation.

    One evaluation, x_0 = D(x_1, 1):

    >>> Table((1.0, 0.0), (Row(0.0, (1.0,)),)).evaluations(steps=1)
    1
    """

    times: tuple[float, ...]
    rows: tuple[Row, ...]
    source: str = "a table"
    rho: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(Row(*row) for row in self.rows))
        if len(self.times) != len(self.rows) + 1 or not self.rows:
            raise ValueError(f"{len(self.rows)} rows need one time more than that; got {len(self.times)}")
        falling = all(t > s for t, s in pairwise(self.times))
        if not (falling and self.times[0] <= 1 and self.times[-1] == 0):
            raise ValueError(f"the times of a table decrease from at most 1 to 0; got {self.times}")

    def on(self, path: Path) -> Table:
        """The same table, for this path alone.

        >>> from solvers import Scales
        >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
        >>> Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,)))).on(straight).rho
        (1.0,)
        """
        return replace(self, rho=_rho(path, self.times))

    @property
    def grid(self) -> tuple[float, ...]:
        """Its own times; it has no other."""
        return self.times

    def init(self, problem: ReverseProcess, times: Tensor) -> History:
        """Nothing evaluated yet.

        Raises:
            ValueError: another grid than its own.
        """
        if tuple(times.tolist()) != self.times:
            raise ValueError("a table has its own times; leave out the grid")
        found = _rho(problem.path, self.times) if self.rho else ()
        for t, own, here in zip(self.times[1:], self.rho, found, strict=False):
            if not math.isclose(own, here, rel_tol=1e-6):
                raise ValueError(
                    f"this table was made for another process: at t = {t:.4g} sigma / alpha is {here:.4g}, and was "
                    f"{own:.4g}; make one for this process"
                )
        return History(0, ())

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, Tensor, History]:
        """One row."""
        decay, weights = self.rows[state.number]
        values = (problem.denoise(x, t), *state.values)
        out = x * decay
        for value, weight in zip(values, weights, strict=False):
            out.add_(value, alpha=weight)
        # As many as later rows use, and one that an error estimate may use.
        longest = max((len(row.weights) - i for i, row in enumerate(self.rows[state.number + 1 :], 1)), default=0)
        return out, s, History(state.number + 1, values[: max(longest, 1)])


def _rho(path: Path, times: tuple[float, ...]) -> tuple[float, ...]:
    """Sigma / alpha between the first and the last time."""
    alpha, sigma = path(torch.tensor(times[1:-1], dtype=torch.float64))[:2]
    return tuple((sigma / alpha).tolist())


def compile_table(solver: Solver, path: Path, nfe: int, grid: str | Tensor | None = None) -> Table:
    """The table of a deterministic solver with a fixed number of steps.

    Args:
        solver: which.
        path: the scales it runs on.
        nfe: evaluations; the solver may use fewer.
        grid: as in ``solve``.

    Raises:
        ValueError: a solver that draws noise or chooses its own steps, whose numbers depend on the sample, or whose
            evaluations cannot be ordered in time.

    >>> from solvers import SOLVERS, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> table = compile_table(SOLVERS["ddim"], straight, 2, torch.tensor([1.0, 0.5, 0.0]))
    >>> table.times, table.rows
    ((1.0, 0.5, 0.0), (Row(decay=0.5, weights=(0.5,)), Row(decay=0.0, weights=(1.0,))))
    """
    from solvers.integrate import solve  # the loop knows solvers by name, this module among them

    if solver.stochastic or solver.adaptive or solver.needs[0] is not ReverseProcess:
        raise ValueError(f"only deterministic solvers with fixed steps are tables; {type(solver).__name__} is none")
    states: list[Tensor] = []
    times: list[float] = []

    units = torch.eye(nfe + 1, dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        states.append(x.clone())
        times.append(float(t[0]))
        return units[len(states), None]

    process = ReverseProcess(model, path)
    if grid is None and not isinstance(solver.grid, str):
        grid = torch.tensor(solver.grid, dtype=torch.float64)
    steps = solver.steps_for(nfe) if grid is None or isinstance(grid, str) else None
    whole = make_grid(solver.grid if grid is None else grid, process, steps)
    if not solver.member(path, whole).linear:
        raise ValueError(
            f"{type(solver).__name__} is no table with {len(whole) - 1} steps on this grid: its numbers depend on what "
            "the model returns for a sample; sde_diffusion.tuning.fit.typical has their mean over noises"
        )
    states.append(solve(process, units[:1], solver=solver, grid=whole).x)
    rows = []
    for i, (x, then) in enumerate(pairwise(states)):
        decay = float(then[0, 0] / x[0, 0]) if then[0, 0] != 0 else 0.0
        change = (then - decay * x)[0, 1 : i + 2].flip(0)
        change[change.abs() < _NOTHING * change.abs().max()] = 0
        used = int(change.nonzero().max()) + 1
        rows.append(Row(decay, tuple(change[:used].tolist())))
    return Table((*times, 0.0), tuple(rows), source=f"{type(solver).__name__} as a table").on(path)
