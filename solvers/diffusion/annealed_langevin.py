r"""Annealed Langevin dynamics: no equation is integrated, each noise level is brought to equilibrium in turn.

From t to s the state keeps x / alpha, x <- (alpha_s / alpha_t) x, and takes M Langevin steps at s,

    x <- x + delta score(x, s) + sqrt(2 delta) xi,       delta = r sigma_s^2 / 2,

the rule of Song & Ermon 2019, algorithm 1: alpha_i = epsilon sigma_i^2 / sigma_L^2, with r = epsilon / sigma_L^2 = 0.2
and M = 100 in their experiments. For n levels the state stays behind the marginals by O(1 / (n M r)), which is the
declared order, and the steps have a bias of O(r) that no number of levels removes: smaller r with larger M does. The
Langevin time of a run grows with n, so that runs of different NFE do not approach one path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """Annealed Langevin dynamics. A run of n steps makes M (n - 1) + 1 evaluations: the last denoises.

    Args:
        corrections: M, Langevin steps at each noise level.
        ratio: r, twice the step size over sigma^2, in (0, 2).

    Raises:
        ValueError: settings out of range, or a grid that runs towards the noise.

    >>> AnnealedLangevin(corrections=100).evaluations(steps=11)
    1001
    """

    corrections: int = 5
    ratio: float = 0.2

    order = 1
    stochastic = True
    needs = (ReverseProcess,)
    follows_path = False
    source = "Song & Ermon 2019, algorithm 1"

    def __post_init__(self) -> None:
        if self.corrections < 1 or not 0 < self.ratio < 2:
            raise InputError(
                f"expected corrections >= 1 and 0 < ratio < 2; got corrections={self.corrections}, ratio={self.ratio}"
            )

    @property
    def stages(self) -> int:
        """M."""
        return self.corrections

    def init(self, problem: ReverseProcess, times: Tensor) -> Any:
        """No state.

        Raises:
            ValueError: a grid that runs towards the noise.
        """
        if times[-1] > times[0]:
            raise InputError("Langevin steps are taken on the way to the data, but the grid increases")
        return None

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """Langevin steps at s."""
        alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
        alpha, sigma = (float(c) for c in problem.path(s)[:2])
        # Pure noise has no x / alpha: the first level starts from noise of its own size.
        x = x * (alpha / alpha_t if alpha_t > 0 else math.hypot(alpha, sigma) / sigma_t)
        # The parts of the interval's own Brownian increment, so that finer runs follow the same path.
        parts = torch.linspace(float(t), float(s), self.corrections + 1, dtype=torch.float64, device="cpu").unbind()
        for a, b in pairwise((t, *parts[1:-1], s)):
            xi = noise.increment(x, a, b)
            pull = problem.denoise(x, s).mul(alpha).sub(x)  # sigma^2 score
            x = x.add(pull, alpha=self.ratio / 2).add_(xi, alpha=math.sqrt(self.ratio) * sigma)
        return x, s, state
