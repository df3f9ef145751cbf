r"""The Gaussian posterior of one discrete step, and the variance that a network may learn for it.

For a step from t to s < t of x = alpha x_0 + sigma eps, with beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the
posterior is

    q(x_s | x_t, x_0) = N( (alpha_s beta / sigma_t^2) x_0 + (alpha_t sigma_s^2 / (alpha_s sigma_t^2)) x_t,  beta~ I ),
    beta~ = beta sigma_s^2 / sigma_t^2                                         (Ho et al. 2020, eq. 6-7).

beta~ and beta are the least and the largest variance that the step of the reverse process can have. A network
with twice the channels learns where between them it lies, for each value of the sample,

    log Sigma = v log beta + (1 - v) log beta~,      v = (1 + output) / 2      (Nichol & Dhariwal 2021, eq. 15).

A step to the data has beta~ = 0: there the logarithm is that of the second step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.sde import DDPM, SDE
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(from_data x_0 + from_x x_t, small): coefficients, float64, in the shape of t.

    ``large`` is beta; ``small`` is beta~, which is 0 for a step to the data.
    """

    from_data: Tensor
    from_x: Tensor
    small: Tensor
    large: Tensor


def posterior(sde: SDE, t: Tensor, s: Tensor) -> Posterior:
    """The posterior of a step from t to s < t.

    >>> sde = DDPM(betas=(0.5, 0.75))
    >>> q = posterior(sde, torch.tensor(1.0), torch.tensor(0.5))
    >>> round(float(q.large), 6), round(float(q.small), 6)  # 3/4 and 3/4 * 1/2 / (7/8)
    (0.75, 0.428571)
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
    rest = alpha_t / alpha_s * sigma_s
    beta = (sigma_t - rest) * (sigma_t + rest)
    small = beta * (sigma_s / sigma_t) ** 2
    return Posterior(alpha_s * beta / sigma_t**2, alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, small, beta)


def learned_log_variance(q: Posterior, first: Tensor, output: Tensor) -> Tensor:
    """log Sigma, like the output: between log beta~ at -1 and log beta at 1.

    Args:
        q: the posterior of the step.
        first: takes the place of beta~ where that is 0.
        output: the second half of the network's channels, (B, ...).
    """
    small = torch.where(q.small > 0, q.small, first)
    v = (1 + output) / 2
    low, high = (per_sample(torch.log(c), output) for c in (small, q.large))
    return v * high + (1 - v) * low


def first_variance(sde: DDPM) -> Tensor:
    """beta~ of the second step, which stands in for the 0 of the first (Nichol & Dhariwal 2021, section 3.1)."""
    if sde.steps < 2:
        raise InputError("a learned variance needs a process of at least 2 steps")
    i = torch.tensor([2.0, 1.0], dtype=torch.float64, device="cpu") / sde.steps
    return posterior(sde, i[0], i[1]).small
