r"""The variational bound that trains a learned variance (Nichol & Dhariwal 2021, eq. 4-6).

The variance of a step, ``sde.step_posterior.learned_log_variance``, is learned from the variational bound, whose
gradient does not reach the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.sde import DDPM, SDE
from sde_diffusion.sde.base import per_sample
from sde_diffusion.sde.step_posterior import first_variance, learned_log_variance, posterior
from solvers.errors import InputError


def variational_bound(sde: SDE, x0: Tensor, x: Tensor, t: Tensor, denoised: Tensor, output: Tensor) -> Tensor:
    """The term of the variational bound at t = i/T in nats per value, (B,) (Nichol & Dhariwal 2021, eq. 4-6).

    KL( q(x_s | x_t, x_0) || N(mean of the model, Sigma) ) for i > 1, and for i = 1 the negative logarithm of
    the Gaussian density of x_0. The gradient does not reach ``denoised``.

    Args:
        sde: the discrete-time process.
        x0: data (B, ...).
        x: x_t.
        t: times (B,), each i/T.
        denoised: E[x_0 | x_t] by the model.
        output: the second half of the network's channels.

    Raises:
        ValueError: a process without steps.
    """
    if not isinstance(sde, DDPM):
        raise InputError(
            f"a learned variance belongs to the steps of the process 'ddpm'; this is {type(sde).__name__}. Use "
            "DDPM(), or a network whose output has the channels of its input"
        )
    q = posterior(sde, t, (t - 1 / sde.steps).clamp_min(0))
    first = first_variance(sde).to(t.device)
    log_variance = learned_log_variance(q, first, output)
    error = per_sample(q.from_data, x0) * (x0 - denoised.detach())
    is_first = (t * sde.steps).round() <= 1
    small = torch.where(is_first, first, q.small)
    log_small = per_sample(torch.log(small), x0)
    # Variances are below 1e-4, so only their ratios are computed.
    kl = (log_variance - log_small + torch.exp(log_small - log_variance) - 1) / 2
    kl = kl + error.square() * torch.exp(-log_variance) / 2
    decoder = (log_variance + math.log(2 * math.pi) + error.square() * torch.exp(-log_variance)) / 2
    return torch.where(is_first.reshape(-1, *(1,) * (x0.ndim - 1)), decoder, kl).flatten(1).mean(1)
