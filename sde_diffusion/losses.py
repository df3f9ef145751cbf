r"""Weighted denoising score matching.

For x_t = alpha x_0 + sigma eps the score of p(x_t | x_0) is -eps / sigma, and the network that
minimises

    L = E_t E_{x_0, eps}  w(t) / d  ||s_theta(x_t, t) + eps / sigma||^2
      = E_t E_{x_0, eps}  w(t) / (sigma^2 d)  ||eps - eps_theta(x_t, t)||^2,    t ~ U[t_min, 1),

has s_theta = grad log p_t, whatever the positive weight w (Vincent 2011, eq. 11; Song et al. 2021,
eq. 7). d is the number of values in a sample. L does not go to 0: its minimum is
E w / (sigma^2 d) tr Cov[eps | x_t].

A network may output something else than eps. Every parametrization is affine, so an error of the
output is an error of eps times ``ScoreModel.output_gain``, and the same L is a regression in the
space of the output,

    L = E  c(t) / d  ||output - target||^2,        c(t) = w(t) gain(t)^2 / sigma(t)^2,

which divides by no small number after the network. c is formed in float64 and used in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import SDE
from solvers.errors import choose

Weight = Callable[[SDE, Tensor], Tensor]


def simple(sde: SDE, t: Tensor) -> Tensor:
    """The weight sigma^2: the plain mean of ||eps - eps_theta||^2 (Ho et al. 2020, eq. 14).

    >>> from sde_diffusion.sde import VPSDE
    >>> float(simple(VPSDE(beta_min=2.0, beta_max=2.0), torch.tensor(0.5)))  # 1 - exp(-1)
    0.63212...
    """
    return sde(t).sigma ** 2


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """The weight g^2 (beta for VP): L bounds the negative log-likelihood.

    Song et al. 2021b (Maximum likelihood training of score-based diffusion models), theorem 1.

    >>> from sde_diffusion.sde import VPSDE
    >>> round(float(likelihood(VPSDE(), torch.tensor(1.0))), 9)
    20.0
    """
    return sde.g(t) ** 2


WEIGHTS: dict[str, Weight] = {"simple": simple, "likelihood": likelihood}


def times(n: int, t_min: float = 1e-5, generator: torch.Generator | None = None) -> Tensor:
    """Draw stratified times: one uniform in each of n equal cells of [t_min, 1), in random order.

    The cells share one uniform offset, t = t_min + (1 - t_min) (i + u) / n. Each time alone is
    uniform; together they cover the interval, which lowers the variance of the loss (Kingma et al.
    2021, appendix I.1).

    Args:
        n: how many.
        t_min: the smallest time, > 0 because sigma(0) = 0.
        generator: CPU generator; torch's own when absent.

    Returns:
        (n,) float64 on the CPU.

    >>> t = times(4, t_min=0.2)
    >>> ((t.sort().values - 0.2) / 0.2).floor()
    tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    cells = torch.randperm(n, generator=generator)
    return t_min + (1 - t_min) * ((cells + offset) / n)


def denoising_loss(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: str | Weight = "simple",
    **condition: Any,
) -> Tensor:
    """Denoising score matching of each sample: w(t) / (sigma^2 d) ||eps - eps_theta(x_t, t)||^2.

    Args:
        model: the score model; one evaluation.
        x0: data (B, ...).
        t: times (B,) in (0, 1), float64 for exact coefficients, on the device of x0.
        eps: standard normal noise like x0.
        weight: a name in ``WEIGHTS``, or a function (sde, t) -> w(t).
        condition: passed on to the network.

    Returns:
        (B,) float32. Its mean over the batch is L.

    Raises:
        ValueError: an unknown weight.

    >>> from sde_diffusion.sde import VPSDE
    >>> zero = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), predicts="noise")
    >>> denoising_loss(zero, torch.ones(1, 2), torch.tensor([0.5]), torch.tensor([[1.0, 3.0]]))
    tensor([5.])
    """
    weigh = choose(weight, WEIGHTS, "weight") if isinstance(weight, str) else weight
    c = weigh(model.sde, t) * (model.output_gain(t) / model.sde(t).sigma) ** 2
    output = model.output(model.sde.perturb(x0, t, eps), t, **condition)
    # Subtracted first: bfloat16 is promoted, and float64 does not cancel in float32.
    error = (output - model.target(x0, eps, t)).float()
    return c.float() * error.square().flatten(1).mean(1)
