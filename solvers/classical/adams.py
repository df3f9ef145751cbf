r"""Adams-Bashforth-Moulton predictor and corrector on the drift in t: one evaluation for every time of the grid.

From the slopes f_j kept at the last two times, with L_j the interpolation polynomials through their times,

    x' = x + sum_(j = 1..2) f_j int_t^s L_j,          (predict)
    f_0 = drift(x', s),                               (evaluate)
    x_s = x + sum_(j = 0..2) f_j int_t^s L_j.         (correct)

The corrected x_s is not evaluated again. Every evaluation counts in the result with about the weight of its step, so
that this is also a good quadrature: what a network adds to a smooth drift is averaged over all of its values, where an
embedded Runge-Kutta pair would shorten its steps to resolve it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from solvers.exponential.quadrature import POINTS, WEIGHTS, lagrange
from solvers.noise import Noise
from solvers.problem import Problem
from solvers.solver import Solver

_KEPT = 2


class AdamsState(NamedTuple):
    """The last slopes and their times, the newest first."""

    times: tuple[float, ...]
    slopes: tuple[Tensor, ...]


@lru_cache(maxsize=4096)
def integrals(times: tuple[float, ...], t: float, s: float) -> tuple[float, ...]:
    """The integrals from t to s of the interpolation polynomials through some times; they are cached.

    >>> [round(w, 12) for w in integrals((1.0, 0.0), 0.0, 1.0)]
    [0.5, 0.5]
    """
    h = s - t
    nodes = np.array([(time - t) / h for time in times])
    return tuple((h * (lagrange(nodes, POINTS) @ WEIGHTS)).tolist())


@dataclass(frozen=True)
class Adams(Solver):
    """Two slopes predict and three correct: global order 3, also with the trapezoidal first step.

    >>> from solvers import Equation, solve
    >>> import torch
    >>> grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    >>> out = solve(Equation(lambda x, t: -x), torch.ones(1, 1).double(), solver=Adams(), grid=grid)
    >>> abs(float(out.x) - 0.36787944117) < 1e-6, int(out.nfe)
    (True, 101)
    """

    order = 3
    grid = "quadratic"
    source = "Hairer, Norsett & Wanner 1993, III.1 (PEC) and III.5 (variable steps)"

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """One for every time of the grid; the step to sigma = 0 has its own."""
        return 1 if finish and steps == 1 else steps + 1

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: AdamsState | None, noise: Noise
    ) -> tuple[Tensor, Tensor, AdamsState]:
        """One step."""
        start, end = float(t), float(s)
        if state is None:
            state = AdamsState((start,), (problem.drift(x, t),))
        predicted = _moved(x, integrals(state.times, start, end), state.slopes)
        times, slopes = (end, *state.times), (problem.drift(predicted, s), *state.slopes)
        corrected = _moved(x, integrals(times, start, end), slopes)
        return corrected, s, AdamsState(times[:_KEPT], slopes[:_KEPT])


def _moved(x: Tensor, weights: tuple[float, ...], slopes: tuple[Tensor, ...]) -> Tensor:
    """X + sum of the weighted slopes."""
    moved = x.add(slopes[0], alpha=weights[0])
    for w, slope in zip(weights[1:], slopes[1:], strict=True):
        moved = moved.add_(slope, alpha=w)
    return moved
