r"""Score distillation (DreamFusion: Poole et al. 2023): a score model of pictures as the loss of what is drawn.

A renderer g makes a picture x = g(theta), in units of the data. With x_t = alpha x + sigma eps, the gradient is

    grad L(theta) = E_{t, eps}  w(t) (eps_model(x_t, t) - eps)  dx / dtheta                                  (eq. 3)

without the derivative of the network. It pulls x to where the smoothed density of the model is high, whatever theta is:
points, colours, the weights of a network. With high guidance it finds a mode and draws no sample of the law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError


def score_distillation(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Callable[[Tensor], Tensor] | None = None,
    **condition: Any,
) -> Tensor:
    """Return a loss (B,) whose gradient with respect to x is w(t) (eps_model - eps); its value means nothing.

    Args:
        model: a score model, guided or not; one evaluation of it, without a gradient.
        x: pictures in units of the data (B, ...), with a gradient to what made them.
        t: times (B,) in (0, 1), float64.
        eps: standard normal noise like x.
        weight: w as a function of t; sigma(t)^2 by default.
        condition: conditions of the network.

    Raises:
        ValueError: times outside (0, 1), or shapes that do not fit.

    >>> from sde_diffusion import VPSDE, Gaussian
    >>> model = Gaussian(torch.zeros(1), torch.ones(1), sde=VPSDE())
    >>> x = torch.full((1, 1), 3.0, requires_grad=True)
    >>> loss = score_distillation(model, x, torch.tensor([0.5]).double(), torch.zeros(1, 1))
    >>> bool(torch.autograd.grad(loss.sum(), x)[0] > 0)                # a step down the gradient leads to the mean
    True
    """
    if t.shape != x.shape[:1] or eps.shape != x.shape:
        raise InputError(
            f"x has shape {tuple(x.shape)}; expected times of shape ({len(x)},) and noise like x, got "
            f"{tuple(t.shape)} and {tuple(eps.shape)}"
        )
    if not bool(((t > 0) & (t < 1)).all()):
        raise InputError("times of score distillation lie between 0 and 1")
    with torch.no_grad():
        z = model.units.to_model(x)
        sigma = model.sde.marginal(t)[1]
        w = sigma.square() if weight is None else weight(t)
        noise = model.noise(model.sde.perturb(z, t, eps), t, **condition)
        gradient = per_sample(w, x) * (noise - eps)
    return (gradient * model.units.to_model(x)).flatten(1).sum(1)
