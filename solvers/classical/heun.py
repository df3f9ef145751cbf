r"""Heun's method on the drift in t: an Euler step, then the mean of the slopes at both of its ends.

x' = x + h drift(x, t),     x_s = x + h/2 [drift(x, t) + drift(x', s)],     h = s - t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.noise import Noise
from solvers.problem import Problem, like
from solvers.solver import Solver


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's second-order method (improved Euler): two evaluations per step, one for the last.

    >>> from solvers import SOLVERS
    >>> SOLVERS["heun"].evaluations(steps=10)
    19
    """

    order = 2
    stages = 2
    grid = "quadratic"
    source = "Karras et al. 2022, algorithm 1 (in t)"

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One step."""
        h = like(s - t, x)
        slope = problem.drift(x, t)
        return x + h / 2 * (slope + problem.drift(x + h * slope, s)), s, state
