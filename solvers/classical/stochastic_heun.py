r"""Stochastic Heun: the trapezoidal rule on the drift, with the whole step's noise in both stages.

    n   = sqrt(|h|) [g(x, t) + g(x, s)] / 2 xi,        h = s - t
    x'  = x + h b(x, t) + n
    x_s = x + h/2 [b(x, t) + b(x', s)] + n

g is taken at the same x at both times, so the result is the Ito solution for any g. For additive
noise (every reverse process) it has weak order 2: in the expansion of b(x', s) the mean of b'' n^2
/ 2 and the covariance of b' n with n are those of the order-2 weak Taylor scheme, and the variance
of n equals int g^2 dt to third order in h. Its strong order is 1, because int (W_u - W_t) du is
replaced by h/2 (W_s - W_t); with g depending on x both orders fall to those of Euler-Maruyama.

Where alpha(t) = 0 the drift of a reverse SDE is infinite; from there the same two stages are taken
with the exact transition for constant D, first with D and then with the mean of D and D'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import Problem, ReverseProcess, like
from solvers.solver import Solver


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """Heun's method for additive noise: weak order 2, strong order 1, two evaluations per step.

    >>> from solvers import SOLVERS
    >>> SOLVERS["stochastic-heun"].evaluations(steps=10)
    19
    """

    order = 2
    strong_order = 1.0
    stochastic = True
    stages = 2
    grid = "quadratic"
    source = "Kloeden & Platen 1992, section 15.1 (additive noise)"

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One step."""
        xi = noise.increment(x, t, s)
        if isinstance(problem, ReverseProcess) and float(problem.path(t).alpha) == 0:
            x0 = problem.denoise(x, t)
            end = problem.denoise(ancestral_step(problem, x, x0, t, s, xi), s)
            return ancestral_step(problem, x, x0.add(end).mul_(0.5), t, s, xi), s, state
        h = like(s - t, x)
        g = (problem.diffusion(x, t) + problem.diffusion(x, s)) / 2
        moved = x + like(h.abs().sqrt(), x) * g * xi
        slope = problem.drift(x, t)
        return moved + h / 2 * (slope + problem.drift(moved + h * slope, s)), s, state
