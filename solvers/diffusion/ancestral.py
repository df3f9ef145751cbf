r"""DDPM ancestral sampling and DDIM: the transition that is exact when D = E[x_0 | x_t] is constant.

With eps = (x - alpha_t D) / sigma_t, h = lambda_s - lambda_t and noise level eta,

    x_s = alpha_s D + sqrt(sigma_s^2 - S^2) eps + S xi,      S = eta sigma_s sqrt(1 - exp(-2 h)).

eta = 0 is DDIM; eta = 1 draws from the posterior q(x_s | x_t, x_0 = D) of DDPM, whose variance is the
beta-tilde of Ho et al. 2020, eq. 7, for any pair of times (Song, Meng & Ermon 2021, eq. 12 and 16).

beta~ = beta sigma_s^2 / sigma_t^2 and beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 are the least and the largest
variance that a step can have, and a network may have learned how far between them log Sigma lies (Nichol & Dhariwal
2021, eq. 15). ``DDPM`` takes each of the three around the same mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError, choose
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver

VARIANCES = ("small", "large", "learned")


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

    Args:
        variance: of a step at eta = 1, "small" (beta~), "large" (beta) or "learned" (by the network). By default the
            learned one where the network has it, else the small one.

    Raises:
        ValueError: an unknown variance; "large" or "learned" with another eta; "learned" of a network without.

    >>> from solvers import SOLVERS
    >>> SOLVERS["ddpm"].stochastic, DDPM("large")
    (True, DDPM(variance='large'))
    """

    variance: str | None = None

    strong_order = 1.0
    stochastic = True
    source = "Ho et al. 2020, eq. 6-7"

    def __post_init__(self) -> None:
        if self.variance is not None:
            choose(self.variance, dict.fromkeys(VARIANCES), "variance")

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One transition with the noise level of the process, or with another variance."""
        if self.variance in ("large", "learned") and problem.eta != 1:
            raise InputError(f"the variance '{self.variance}' is of a step with eta = 1; got eta = {problem.eta:g}")
        if self.variance == "small" or (self.variance is None and problem.eta != 1):
            return super().step(problem, x, t, s, state, noise)
        x0, share = (problem.denoise(x, t), None) if self.variance == "large" else problem.denoise_with_share(x, t)
        xi = noise.increment(x, t, s)
        if self.variance is None and share is None:
            return ancestral_step(problem, x, x0, t, s, xi), s, state
        if self.variance == "learned" and share is None:
            raise InputError("the network learned no variance (half of twice the channels); use 'small' or 'large'")
        mean = ancestral_step(problem, x, x0, t, s, None, eta=1.0)
        small, large = step_variances(problem, t, s)
        if share is None:
            return mean + math.sqrt(large) * xi, s, state
        return mean + torch.exp((math.log(small) + share * math.log(large / small)) / 2) * xi, s, state


def step_variances(problem: ReverseProcess, t: Tensor, s: Tensor) -> tuple[float, float]:
    """(beta~, beta) of a step from t to s.

    >>> from solvers.problem import Scales
    >>> flow = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> process = ReverseProcess(lambda x, t: x, flow, 1.0)
    >>> small, large = step_variances(process, torch.tensor(0.5), torch.tensor(0.25))
    >>> round(large, 6), round(small, 6)  # 1/4 - (2/3 / 4)^2, and a quarter of it
    (0.222222, 0.055556)
    """
    alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
    alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
    rest = alpha_t / alpha_s * sigma_s
    large = (sigma_t - rest) * (sigma_t + rest)
    return large * (sigma_s / sigma_t) ** 2, large
