r"""The noise of the observation for one ancestral step.

A step of ``ddpm`` or ``ddim`` from t to s takes E[x_0 | x_t, y] for x_0 and drops Cov[x_0 | x_t, y]. With few steps the
samples then follow the observation too closely: 20 steps leave 0.45 of the posterior's standard deviation where the
prior is wide. In u = x / alpha with rho = sigma / alpha, y = u_0 + n and a wide prior,

    u_s = (1 - q) D_y + q u + S xi,      D_y = u + K (y - u),      q = r sqrt(1 - eta^2 (1 - r^2)),   r = rho_s / rho_t,

and Var[u_t | y] = s^2 + rho_t^2. The variance after the step is s^2 + rho_s^2 if K = rho_t^2 / (rho_t^2 + f) with

    f = s^2 [1 + g + rho_t^2 (1 - q^2) / ((s^2 + rho_t^2) (g + q))] / (1 + q),
    g = sqrt((s^2 + q^2 rho_t^2) / (s^2 + rho_t^2)).

f is larger than s^2, and s^2 in the limit of small steps. A prior that knows the direction to a variance V keeps the
samples near by itself, and f would move their mean: the noise of the step is s^2 + (V / rho_t^2) (f - s^2). For A with
singular values a other than 1, f is a^2 f(s^2 / a^2) at their mean square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from solvers import Solver
from solvers.diffusion.ancestral import DDIM, DDPM


def has_step_noise(solver: Solver) -> bool:
    """Whether a solver takes the steps of ``step_noise``."""
    return type(solver) is DDIM or (type(solver) is DDPM and solver.variance in (None, "small"))


def step_noise(sde: SDE, times: Tensor, eta: float, variance: float) -> Tensor:
    """The f of each step.

    Args:
        sde: the process.
        times: of the run, float64 (steps + 1,), with alpha > 0.
        eta: noise level of the steps.
        variance: s^2, > 0.

    Returns:
        (steps,) float64.

    >>> from sde_diffusion.sde import VPSDE
    >>> step_noise(VPSDE(), torch.tensor([0.1, 0.02, 0.0]).double(), 1.0, 0.01)  # two coarse steps
    tensor([0.0380, 0.0226], dtype=torch.float64)
    >>> step_noise(VPSDE(), torch.tensor([0.101, 0.1]).double(), 1.0, 0.01)  # a small one
    tensor([0.0101], dtype=torch.float64)
    """
    alpha, sigma = sde.marginal(times)
    rho = sigma / alpha
    ratio, square = rho[1:] / rho[:-1], rho[:-1] ** 2
    q = ratio * torch.sqrt(1 - eta**2 * (1 - ratio**2))
    g = torch.sqrt((variance + q**2 * square) / (variance + square))
    return variance * (1 + g + square * (1 - q**2) / ((variance + square) * (g + q))) / (1 + q)
