r"""Euler and Euler-Maruyama: one drift evaluation per step.

    x_s = x + (s - t) drift(x, t) + sqrt(|s - t|) diffusion(t) xi

Where alpha(t) = 0 (pure noise) the coefficients of a reverse SDE are infinite; from there the exact
transition for the current D is taken, which is the ancestral step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import Problem, ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class Euler(Solver):
    """Explicit Euler on the drift in t; order 1.

    >>> import torch
    >>> from solvers import Equation, solve
    >>> decay = Equation(lambda x, t: -x)
    >>> float(solve(decay, torch.ones(1, 1), solver="euler", grid=torch.linspace(0, 1, 11)).x)  # 0.9^10
    0.3486...
    """

    order = 1
    grid = "uniform"
    source = "Song et al. 2021, eq. 13"

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One Euler step."""
        return x.add(problem.drift(x, t), alpha=float(s) - float(t)), s, state


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse-time SDE; weak order 1, and strong order 1 since the noise is additive.

    >>> from solvers import SOLVERS
    >>> SOLVERS["euler-maruyama"].evaluations(steps=200)
    200
    """

    order = 1
    strong_order = 1.0
    stochastic = True
    grid = "uniform"
    source = "Song et al. 2021, eq. 6"

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One Euler-Maruyama step."""
        xi = noise.increment(x, t, s)
        if isinstance(problem, ReverseProcess) and float(problem.path(t).alpha) == 0:
            return ancestral_step(problem, x, problem.denoise(x, t), t, s, xi), s, state
        h = float(s) - float(t)
        kick = problem.diffusion(x, t) * xi
        return x.add(problem.drift(x, t), alpha=h).add_(kick, alpha=abs(h) ** 0.5), s, state
