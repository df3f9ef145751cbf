r"""Multistep consistency sampling: denoise, then noise anew.

    x_s = alpha_s f(x_t, t) + sigma_s xi,        xi ~ N(0, I), independent of all before.

f is a consistency function: the end of the probability flow through x_t (Song, Dhariwal, Chen & Sutskever 2023,
algorithm 1). With E[x_0 | x_t] in place of f the samples have too small a spread, so this is a sampler of distilled
models and not among ``SOLVERS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class Renoising(Solver):
    """Multistep consistency sampling; one evaluation a step.

    Args:
        spacing: name of its time grid.

    >>> Renoising().evaluations(steps=2), Renoising().usual_nfe
    (2, 2)
    """

    spacing: str = "karras"
    order = 0
    stochastic = True
    needs = (ReverseProcess,)
    usual_nfe = 2
    source = "Song, Dhariwal, Chen & Sutskever 2023, algorithm 1"

    @property
    def grid(self) -> str:
        """The levels of Karras et al. 2022."""
        return self.spacing

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One evaluation, and new noise of the level at s."""
        alpha, sigma = (float(c) for c in problem.path(s)[:2])
        x0 = problem.denoise(x, t)
        return x0.mul(alpha).add_(noise.independent(x, s), alpha=sigma), s, state
