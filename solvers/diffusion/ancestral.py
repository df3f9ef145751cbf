r"""DDPM ancestral sampling and DDIM: the transition that is exact when D = E[x_0 | x_t] is constant.

With eps = (x - alpha_t D) / sigma_t, h = lambda_s - lambda_t and noise level eta,

    x_s = alpha_s D + sqrt(sigma_s^2 - S^2) eps + S xi,      S = eta sigma_s sqrt(1 - exp(-2 h)).

eta = 0 is DDIM; eta = 1 draws from the posterior q(x_s | x_t, x_0 = D) of DDPM, whose variance is the
beta-tilde of Ho et al. 2020, eq. 7, for any pair of times (Song, Meng & Ermon 2021, eq. 12 and 16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM: the exact flow for constant D; order 1.

    >>> from solvers import SOLVERS
    >>> SOLVERS["ddim"].evaluations(steps=10)
    10
    """

    order = 1
    needs = (ReverseProcess,)
    source = "Song, Meng & Ermon 2021, eq. 12"

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One transition with the noise level of the process."""
        x0 = problem.denoise(x, t)
        xi = noise.increment(x, t, s) if self.stochastic else None
        return ancestral_step(problem, x, x0, t, s, xi), s, state


@dataclass(frozen=True)
class DDPM(DDIM):
    """DDPM ancestral sampling, or DDIM with noise: the same transition with eta > 0; weak order 1.

    >>> from solvers import SOLVERS
    >>> SOLVERS["ddpm"].stochastic
    True
    """

    strong_order = 1.0
    stochastic = True
    source = "Ho et al. 2020, eq. 6-7"
