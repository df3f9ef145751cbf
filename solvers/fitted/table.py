r"""A solver as a table of coefficients: the times of one run, and the weights of each of its steps.

Every deterministic solver that evaluates the model once at each of N times t_0 > ... > t_{N-1} is linear in
the predictions of the model, D_i = D(x_i, t_i):

    x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j,        x_0 = x_T,      i = 0, ..., N - 1.

Singlestep methods are of this form too, with their stages as times of the table, since a stage before the last one
can be solved for its starting x. ``compile_table`` finds the coefficients by running the solver once on unit
vectors, with a model that returns the next unit vector at each call and records its input.

A table has the cheapest loop, can be written to a file, and is a starting point of tuning, which changes its
coefficients to minimise the distance of one model's samples with N evaluations to the reference solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver

# Weights this small relative to the largest of a row are rounding errors of the unit-vector run.
_NOTHING = 1e-12


class Row(NamedTuple):
    """The coefficients of a step, x_{i+1} = decay x_i + sum_j weights[j] D_{i-j}.

    The newest D comes first, and trailing zeros are left out.

    >>> Row(0.5, (0.5,)).weights
    (0.5,)
    """

    decay: float
    weights: tuple[float, ...]


class History(NamedTuple):
    """The number of completed rows, and the predictions of the model, newest first."""

    number: int
    values: tuple[Tensor, ...]


class FixedGridSolver(Solver):
    """A solver for its own time grid only, and therefore for one number of evaluations."""

    order = 0
    needs = (ReverseProcess,)
    owns_last_step = True
    uses_corrector = True  # unknown for a table, so assume yes

    def steps_for(self, evaluations: int, finish: bool = True) -> int:
        """The number of evaluations of the table.

        Raises:
            ValueError: another NFE.
        """
        steps = len(self.grid) - 1
        if evaluations != steps:
            raise InputError(
                f"this solver was made for {steps} evaluations, not for {evaluations}; give it nfe = {steps}, or make "
                "one for this NFE"
            )
        return evaluations


@dataclass(frozen=True)
class Table(FixedGridSolver):
    """A solver of N evaluations as a table of coefficients.

    Args:
        times: t_0 > ... > t_{N-1} > 0, and a last 0: x starts at the first and ends at the last.
        rows: one for each evaluation.
        source: origin of the coefficients.
        rho: sigma / alpha at the times between the first and the last, if the table is for one path; other paths
            raise an error.

    Raises:
        ValueError: times that do not decrease to 0, or a wrong number of rows.

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
            raise InputError(f"{len(self.rows)} rows need one time more than that; got {len(self.times)}")
        falling = all(t > s for t, s in pairwise(self.times))
        if not (falling and self.times[0] <= 1 and self.times[-1] == 0):
            raise InputError(f"the times of a table decrease from at most 1 to 0; got {self.times}")

    def on(self, path: Path) -> Table:
        """A copy for this path alone.

        >>> from solvers import Scales
        >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
        >>> Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,)))).on(straight).rho
        (1.0,)
        """
        return replace(self, rho=_rho(path, self.times))

    @property
    def grid(self) -> tuple[float, ...]:
        """The table's own times."""
        return self.times

    def init(self, problem: ReverseProcess, times: Tensor) -> History:
        """The state before the first evaluation.

        Raises:
            ValueError: the grid differs from the table's.
        """
        if tuple(times.tolist()) != self.times:
            raise InputError("a table has its own times; leave out the grid")
        found = _rho(problem.path, self.times) if self.rho else ()
        for t, own, here in zip(self.times[1:], self.rho, found, strict=False):
            if not math.isclose(own, here, rel_tol=1e-6):
                raise InputError(
                    f"this table was made for another process: at t = {t:.4g} sigma / alpha is {here:.4g}, and was "
                    f"{own:.4g}; make one for this process"
                )
        return History(0, ())

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, Tensor, History]:
        """One row."""
        x, state = self.advanced(x, problem.denoise(x, t), state)
        return x, s, state

    def advanced(self, x: Tensor, value: Tensor, state: History) -> tuple[Tensor, History]:
        """The next state, given the prediction of the model at this one."""
        decay, weights = self.rows[state.number]
        values = (value, *state.values)
        out = x * decay
        for known, weight in zip(values, weights, strict=False):
            out.add_(known, alpha=weight)
        # Those that later rows use, and one for an error estimate.
        longest = max((len(row.weights) - i for i, row in enumerate(self.rows[state.number + 1 :], 1)), default=0)
        return out, History(state.number + 1, values[: max(longest, 1)])


def _rho(path: Path, times: tuple[float, ...]) -> tuple[float, ...]:
    """Sigma / alpha between the first and the last time."""
    alpha, sigma = path(torch.tensor(times[1:-1], dtype=torch.float64, device="cpu"))[:2]
    return tuple((sigma / alpha).tolist())
