"""The loss on data that training does not see, beside the loss on as many samples that it does.

Both use the averaged weights, one set of times and one of noise, fixed for the whole run, so that their difference is
not noise of the estimate: it grows when the network memorises the training data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.data import Data
from sde_diffusion.data.augment import LABELS
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.losses import denoising_loss
from sde_diffusion.training.randomness import StepRandomness, key
from sde_diffusion.training.time_sampling import TIME_SAMPLERS

MOST = 128  # samples of each


def split(data: Data, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the data that training takes, and of those held out, chosen at random by the seed.

    >>> from sde_diffusion.data import as_data
    >>> kept, held = split(as_data(torch.zeros(10, 2)), 0.2, seed=0)
    >>> len(kept), len(held), sorted([*kept.tolist(), *held.tolist()]) == list(range(10))
    (8, 2, True)
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(key(seed, "hold-out")), device="cpu")
    count = max(1, round(share * len(data)))
    return order[count:].sort().values, order[:count].sort().values


@torch.no_grad()
def loss_on(model: ScoreModel, data: Data, index: Tensor, config: TrainConfig) -> float:
    """The mean weighted loss of samples of the data, with the times and the noise of the run's seed.

    Args:
        model: in evaluation mode.
        data: the data set.
        index: positions of the samples; evenly spaced ones of many.
        config: weight, times and seed.
    """
    count = min(len(index), MOST)
    index = index[torch.linspace(0, len(index) - 1, count, dtype=torch.float64, device="cpu").long()]
    draws = StepRandomness(key(config.seed, "held-out"), len(data), count)
    sampler = TIME_SAMPLERS[config.time_sampling]
    t, factor = sampler.sample(count, config.t_min, draws.generator("times", 0), model.sde, sampler.start())
    total, size = 0.0, min(config.batch_size, count)
    for first in range(0, count, size):
        rows = slice(first, first + size)
        x0 = model.units.to_model(data.batch(index[rows]).to(model.device))
        condition: dict[str, Tensor] = {}
        if config.labels and data.labels is not None:
            condition["label"] = data.labels[index[rows]].to(model.device)
        if data.condition is not None:
            condition[data.condition.kind] = data.condition.batch(index[rows]).to(model.device)
        if config.augment:
            condition["context"] = torch.full((len(x0), LABELS), torch.nan, device=x0.device)  # not augmented
        seeds = [draws.generator("noise", k) for k in range(first, first + len(x0))]
        eps = torch.stack([torch.randn(x0.shape[1:], generator=seed, device="cpu") for seed in seeds]).to(x0)
        losses = denoising_loss(model, x0, t[rows].to(model.device), eps, config.weight, **condition)
        total += float((losses.double().cpu() * factor[rows]).sum())
    return total / count
