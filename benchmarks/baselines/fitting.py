"""Training of any module by ``sde_diffusion.training.Trainer``.

The trainer brings the order of the data, seeds of every step, warm-up and cosine schedule, clipping, the exponential
average and the check for values that are not finite; the objective ignores its times and noise.

>>> mean = nn.Linear(1, 1)
>>> found = fit(mean, torch.ones(64, 1), lambda net, x: (net(0 * x) - x).square().sum(1), steps=200, batch_size=32)
>>> round(float(found.network.bias), 2), len(found.losses)
(1.0, 200)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel
from sde_diffusion.data import Data
from sde_diffusion.training import TrainConfig, Trainer
from sde_diffusion.training.losses import Objective

LEVEL = 2 / 255
Loss = Callable[[Any, Tensor], Tensor]


class Fitted(NamedTuple):
    """A trained network.

    Attributes:
        network: with the averaged weights, in evaluation mode.
        seconds: of processor time.
        losses: of every update.
    """

    network: Any
    seconds: float
    losses: list[float]


class _Objective(Objective):
    def __init__(self, model: ScoreModel, network: nn.Module, loss: Loss, beside: nn.Module | None) -> None:
        super().__init__(model, network)
        self.loss, self.learned = loss, beside

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        losses = self.loss(self.model.network, x0)
        return losses.detach(), losses


def fit(
    network: nn.Module,
    data: Data | Tensor,
    loss: Loss,
    *,
    beside: nn.Module | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    **options: Any,
) -> Fitted:
    """Train a network.

    Args:
        network: is trained in place.
        data: images of bytes become values from -1 to 1; floats stay as they are.
        loss: (network, x) -> the losses (B,) to minimise.
        beside: a module trained along with the network, such as a discriminator.
        betas: of AdamW.
        options: options of ``TrainConfig``.
    """
    given = data.x if isinstance(data, Data) else data
    config = TrainConfig(log_every=100, normalize="range" if given.dtype == torch.uint8 else "none")
    config = config.with_options(options)
    model = ScoreModel(network, VPSDE(), "data", shape=tuple(given.shape[1:]))

    def objective(view: ScoreModel, inner: nn.Module) -> Objective:
        made = _Objective(view, inner, loss, beside)
        made.betas = betas
        return made

    start = time.process_time()
    trainer = Trainer(model, data, config, objective=objective)
    losses = []
    for step in trainer:
        losses.append(step.loss)
    average = copy.deepcopy(network)
    average.load_state_dict(trainer.averages["ema"].state())
    return Fitted(average.eval(), time.process_time() - start, torch.stack(losses).tolist())


def dequantised(x: Tensor) -> Tensor:
    """Images with values from -1 to 1 in steps of 2/255, with uniform noise of that width."""
    return x + LEVEL * (torch.rand_like(x) - 0.5)
