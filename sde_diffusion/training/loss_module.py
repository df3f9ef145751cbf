"""The training loss as a module: its forward pass returns the loss of each sample.

It is a module because distributed training averages gradients around a forward pass, and because a loss weight may
be trained together with the network.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.loss_weights import learned_weight
from sde_diffusion.training.losses import denoising_loss


class LossModule(nn.Module):
    """The loss of a model.

    Args:
        model: the score model.
        network: what computes in the place of its network, with the same parameters.
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
        super().__init__()
        view = copy.copy(model)
        view._modules = {**model._modules, "network": network}
        self.model = view
        self.weight = weight
        self.learned = learned_weight(weight)

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weighted losses, and the minimised ones: after the learned weight, if any, multiplied by ``factor``.

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
