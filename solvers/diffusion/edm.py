r"""The stochastic sampler of Karras et al. 2022: Heun's method in rho = sigma / alpha, and churn.

In z = x / alpha the probability flow is dz/d rho = eps = (z - D) / rho. An Euler step in it is
DDIM, and Heun's correction needs only the change of D over the step (x', D' at its end):

    x'  = sigma_s/sigma_t x + (alpha_s - alpha_t sigma_s/sigma_t) D
    x_s = x' + alpha_s/2 (rho_t/rho_s - 1) (D' - D)

From alpha_t = 0, where rho is infinite, the trapezoid in 1/rho takes its place: the last line with
(1 - rho_s/rho_t) = 1.

Churn goes back before each step, from rho to rho_hat = (1 + gamma) rho, by adding the noise between
them,

    x_hat = alpha_hat/alpha x + alpha_hat sqrt(rho_hat^2 - rho^2) S_noise xi,
    gamma = min(S_churn / steps, sqrt(2) - 1) where S_min <= rho <= S_max, else 0,

and steps from there. Both halves keep the marginals, so at S_noise = 1 the only error is that of
Heun's method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.grids import time_at
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver


def heun_step(problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One step of Heun's method in rho, two evaluations; sigma(s) > 0.

    For Gaussian data of unit variance the flow of sigma = t is x sqrt(1 + s^2) / sqrt(1 + t^2):

    >>> from solvers import Scales
    >>> one = lambda t: Scales(torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))
    >>> ode = ReverseProcess(lambda x, t: x / (1 + t.reshape(-1, 1) ** 2), one)
    >>> t, s = torch.tensor([0.5, 0.4], dtype=torch.float64)
    >>> x = heun_step(ode, torch.ones(1, 1).double(), t, s)
    >>> round(float(x), 3), round(math.sqrt(1.16 / 1.25), 3)
    (0.963, 0.963)
    """
    alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
    alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
    kept = sigma_s / sigma_t
    x0 = problem.denoise(x, t)
    x = x * kept + x0 * (alpha_s - kept * alpha_t)
    growth = sigma_t * alpha_s / (alpha_t * sigma_s) - 1 if alpha_t > 0 else 1.0
    change = problem.denoise(x, s) - x0
    return x.add_(change, alpha=alpha_s / 2 * growth)


def add_noise(problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, xi: Tensor) -> Tensor:
    """The forward process from t to a later time s: x_s given x_t, with xi ~ N(0, I)."""
    alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
    alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
    ratio = alpha_s / alpha_t
    fresh = (sigma_s - ratio * sigma_t) * (sigma_s + ratio * sigma_t)
    return (x * ratio).add_(xi, alpha=math.sqrt(max(fresh, 0.0)))


class EDMState(NamedTuple):
    """Start of each step, and the number of steps done."""

    starts: tuple[Tensor, ...]
    done: int


@dataclass(frozen=True)
class EDMHeun(Solver):
    """Heun's method in rho, with churn if asked for.

    Without churn it integrates the probability flow. With churn the noise is its own: of the
    process it uses the marginals, and eta does not matter.

    Args:
        s_churn: amount of renewed noise in a run; 0 for none.
        s_min: least rho at which noise is renewed.
        s_max: largest rho at which noise is renewed.
        s_noise: factor on the new noise; other than 1 it changes the marginals on purpose.

    Raises:
        ValueError: settings out of range; churn on a grid that runs towards the noise.

    >>> EDMHeun().stochastic, EDMHeun(s_churn=30.0, s_min=0.01, s_max=1.0, s_noise=1.007).stochastic
    (False, True)
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    order = 2
    stages = 2
    needs = (ReverseProcess,)
    grid = "karras"
    source = "Karras et al. 2022, algorithm 2"

    def __post_init__(self) -> None:
        in_range = 0 <= self.s_churn < math.inf and 0 <= self.s_min <= self.s_max
        if not (in_range and self.s_noise > 0):
            raise InputError(
                "expected s_churn >= 0, 0 <= s_min <= s_max and s_noise > 0; got "
                f"s_churn={self.s_churn}, s_min={self.s_min}, s_max={self.s_max}, "
                f"s_noise={self.s_noise}"
            )

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.s_churn > 0

    @property
    def strong_order(self) -> float | None:
        """1 once S_churn / steps is below the bound on gamma: churn draws from the path."""
        return 1.0 if self.stochastic else None

    def init(self, problem: ReverseProcess, times: Tensor) -> EDMState:
        """The times that churn goes back to; they are cached."""
        if self.stochastic and times[-1] > times[0]:
            raise InputError("churn adds noise on the way to the data, but the grid increases; use s_churn=0")
        return EDMState(_starts(self, problem.path, tuple(times.tolist())), 0)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: EDMState, noise: Noise
    ) -> tuple[Tensor, Tensor, EDMState]:
        """Back to the start of the step, then one step of Heun's method."""
        start = state.starts[state.done] if self.stochastic else t
        if start is not t and float(start) > float(t):
            xi = noise.increment(x, t, s)
            x = add_noise(problem, x, t, start, xi if self.s_noise == 1 else xi * self.s_noise)
        return heun_step(problem, x, start, s), s, EDMState(state.starts, state.done + 1)


@lru_cache(maxsize=128)
def _starts(solver: EDMHeun, path: Path, times: tuple[float, ...]) -> tuple[Tensor, ...]:
    """The time at which each step starts: t, or later where there is churn."""
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    alpha, sigma = path(t)[:2]
    rho = sigma / alpha
    gamma = min(solver.s_churn / (len(times) - 1), math.sqrt(2) - 1)
    churned = (rho >= solver.s_min) & (rho <= solver.s_max) & rho.isfinite() & (rho > 0)
    # The path ends at t = 1: from near there, churn goes back to there at most.
    back = time_at(path, -torch.log(rho * (1 + gamma)))
    return tuple(torch.where(churned, torch.maximum(back, t), t).unbind())
