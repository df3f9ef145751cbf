r"""Weighted denoising score matching.

For x_t = alpha x_0 + sigma eps the score of p(x_t | x_0) is -eps / sigma, and the network that
minimises

    L = E_t E_{x_0, eps}  w(t) / d  ||s_theta(x_t, t) + eps / sigma||^2
      = E_t E_{x_0, eps}  w(t) / (sigma^2 d)  ||eps - eps_theta(x_t, t)||^2,    t ~ U[t_min, 1),

has s_theta = grad log p_t for every positive weight w (Vincent 2011, eq. 11; Song et al. 2021,
eq. 7). d is the number of values in a sample. L does not go to 0: its minimum is
E w / (sigma^2 d) tr Cov[eps | x_t].

A network may predict another target than eps. Every parametrization is affine, so the error of the
output is the error of eps times ``ScoreModel.output_gain``, and the same L is a regression in the
space of the output,

    L = E  c(t) / d  ||output - target||^2,        c(t) = w(t) gain(t)^2 / sigma(t)^2,

without a division by a small number after the network. c is formed in float64 and used in float32.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.loss_weights import Weight, learned_weight, weight_for
from sde_diffusion.training.vlb import variational_bound

# lambda T of eq. 16 for T = 1000; the bound is a mean over steps here and a sum over steps in the paper.
HYBRID = 1.0

__all__ = ["HYBRID", "LossModule", "Objective", "denoising_loss"]


def denoising_loss(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: str | Weight = "simple",
    **condition: Any,
) -> Tensor:
    """Denoising score matching of each sample: w(t) / (sigma^2 d) ||eps - eps_theta(x_t, t)||^2.

    A network with twice the channels also learns the variance of the steps of a DDPM process: ``HYBRID`` times
    the term of the variational bound is added (Nichol & Dhariwal 2021, eq. 16).

    Args:
        model: the score model; one evaluation.
        x0: data (B, ...).
        t: times (B,) in (0, 1), float64 for exact coefficients, on the device of x0.
        eps: standard normal noise like x0.
        weight: a name in ``LOSS_WEIGHTS``, or a function (sde, t) -> w(t).
        condition: conditions of the network.

    Returns:
        (B,) float32, whose mean over the batch estimates L.

    Raises:
        ValueError: an unknown weight, or a learned variance on a process without steps.

    >>> import torch
    >>> from sde_diffusion.sde import VPSDE
    >>> zero = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), predicts="noise")
    >>> denoising_loss(zero, torch.ones(1, 2), torch.tensor([0.5]), torch.tensor([[1.0, 3.0]]))
    tensor([5.])
    """
    weigh = weight_for(weight, model.sigma_data, model.parametrization)
    c = weigh(model.sde, t) * (model.output_gain(t) / model.sde(t).sigma) ** 2
    x = model.sde.perturb(x0, t, eps)
    output, variance = model.outputs(x, t, **condition)
    # Subtraction comes before the cast: bfloat16 is promoted, and float64 values do not cancel in float32.
    error = (output - model.target(x0, eps, t)).float()
    loss = c.float() * error.square().flatten(1).mean(1)
    if variance is None:
        return loss
    bound = variational_bound(model.sde, x0, x, t, model.denoised_from(output, x, t), variance.float())
    return loss + HYBRID * bound.float()


class Objective(nn.Module, ABC):
    """The base class of training objectives: modules that a ``Trainer`` minimises.

    Args:
        model: the model in training.
        network: module that replaces its network, with the same parameters.

    Attributes:
        model: a view of the model with that network.
        learned: a module trained and stored along with the network, such as a learned weight over time, or None.
        gives_context: whether the objective itself supplies the network's context.
        betas: decays of the two moments of AdamW.
        pace: learning rate of ``learned`` over that of the network.
    """

    gives_context = False
    betas: tuple[float, float] = (0.9, 0.999)
    pace: float = 1.0

    def __init__(self, model: ScoreModel, network: nn.Module) -> None:
        super().__init__()
        self.learned: nn.Module | None = None  # of the instance: a class attribute would hide the module
        view = copy.copy(model)
        view._modules = {**model._modules, "network": network}
        self.model = view

    def begin(self, step: int) -> None:
        """Called before each update with its number, 1, 2, ..., for a loss that changes during training."""

    def figures(self) -> dict[str, float]:
        """Figures of the last batch, for a line of the log; none by default."""
        return {}

    @abstractmethod
    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The losses (B,) to log and those to minimise; the arguments are those of ``LossModule.forward``."""


class LossModule(Objective):
    """Weighted denoising score matching of a model.

    Args:
        model: the score model.
        network: module that replaces its network, with the same parameters.
        weight: a name in ``LOSS_WEIGHTS``.

    >>> import torch
    >>> from sde_diffusion.sde import VPSDE
    >>> half = nn.Linear(2, 2)
    >>> model = ScoreModel(half, VPSDE(), predicts="data")
    >>> class Zero(nn.Module):
    ...     def forward(self, x, t):
    ...         return 0 * x
    >>> objective = LossModule(model, Zero(), "simple")
    >>> x0, t, eps = torch.ones(1, 2), torch.tensor([0.5]), torch.zeros(1, 2)
    >>> measured, minimised = objective(x0, t, eps, torch.tensor([3.0]))
    >>> torch.equal(3 * measured, minimised), model.network is half
    (True, True)
    """

    def __init__(self, model: ScoreModel, network: nn.Module, weight: str) -> None:
        super().__init__(model, network)
        self.weight = weight
        self.learned = learned_weight(weight)

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weighted losses, and the objective: after the learned weight, if any, multiplied by ``factor``.

        Args:
            x0: data (B, ...).
            t: times (B,).
            eps: noise like x0.
            factor: the importance weight of each time, (B,).
            condition: passed on to the network.

        Returns:
            Two tensors (B,), float32.
        """
        losses = denoising_loss(self.model, x0, t, eps, self.weight, **(condition or {}))
        minimised = losses if self.learned is None else self.learned(self.model.sde, t, losses)
        return losses.detach(), minimised * factor.float()
