r"""Reverse diffusion sampling: the reverse SDE discretised like the forward one.

Between two times s < t the forward process makes the exact Gaussian transition

    x_t = a x_s + sqrt(V) xi,      a = alpha_t / alpha_s,      V = sigma_t^2 - a^2 sigma_s^2,

which is x_s + f_i(x_s) + G_i xi with f_i(x) = (a - 1) x and G_i^2 = V. The reverse step takes f_i
and G_i from it, with noise level eta:

    x_s = x - f_i(x) + (1 + eta^2)/2 V score(x, t) + eta sqrt(V) xi

(Song et al. 2021, appendix E for eta = 1 and appendix D.3, the probability flow, for eta = 0). On
a variance-preserving path V = 1 - a^2 =: beta_i and it reads (2 - sqrt(1 - beta_i)) x + beta_i
score + sqrt(beta_i) xi; on a variance-exploding one x + (sigma_t^2 - sigma_s^2) score + ... .

Where alpha(t) = 0 the linearisation 2 - a of 1/a is meaningless; from there the exact transition for
the current D is taken, which is the ancestral step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """The reverse-diffusion sampler; weak order 1, and strong order 1 since the noise is additive.

    >>> from solvers import SOLVERS
    >>> SOLVERS["reverse-diffusion"].evaluations(steps=200)
    200
    """

    order = 1
    strong_order = 1.0
    stochastic = True
    needs = (ReverseProcess,)
    grid = "uniform"
    source = "Song et al. 2021, appendix E"

    def init(self, problem: ReverseProcess, times: Tensor) -> None:
        """No state."""
        if times[-1] > times[0]:
            raise InputError("reverse diffusion steps towards the data, but the grid increases; encode with pf-ode")

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One reverse transition."""
        x0 = problem.denoise(x, t)
        xi = noise.increment(x, t, s) if problem.stochastic else None
        alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
        alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
        if alpha_t == 0:
            return ancestral_step(problem, x, x0, t, s, xi), s, state
        a = alpha_t / alpha_s
        variance = (sigma_t - a * sigma_s) * (sigma_t + a * sigma_s)
        pull = (1 + problem.eta**2) / 2 * variance / sigma_t**2
        out = x0 * (pull * alpha_t) + x * (2 - a - pull)
        return (
            out if xi is None else out.add_(xi, alpha=problem.eta * math.sqrt(variance)),
            s,
            state,
        )
