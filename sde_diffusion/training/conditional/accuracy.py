"""Accuracy of a classifier of noisy samples, by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sde_diffusion.data import Data
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from solvers.errors import InputError
from solvers.noise import standard_normal

TIMES = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_STREAM = 12
_BATCH = 500


class Accuracy(NamedTuple):
    """Accuracy at one time.

    Attributes:
        t: the time.
        rho: the noise level sigma / alpha there.
        accuracy: share of the samples whose most probable class is their own.
        nats: mean of -log p(y | x_t, t).
    """

    t: float
    rho: float
    accuracy: float
    nats: float


@torch.no_grad()
def accuracy_by_time(
    model: NoisyClassifier, data: Data, times: Sequence[float] = TIMES, n: int = 2000, seed: int = 0
) -> list[Accuracy]:
    """Return the accuracy at each time, on up to n samples with one noise each.

    Args:
        model: the classifier, in evaluation mode.
        data: labelled samples.
        times: in (0, 1].
        n: samples, spaced evenly over the data.
        seed: seed of the noise; all times share it.

    Raises:
        ValueError: data without labels.
    """
    if data.labels is None:
        raise InputError(f"{data.name} has no labels to compare with")
    index = torch.linspace(0, len(data) - 1, min(n, len(data)), dtype=torch.float64).long()
    found = []
    for time in times:
        right, nats = 0, 0.0
        for rows in torch.split(index, _BATCH):
            x0 = model.units.to_model(data.batch(rows).to(model.device))
            y = data.labels[rows].to(model.device)
            eps = standard_normal(rows + seed * 2**32, data.shape, _STREAM).to(x0)
            t = torch.full((len(rows),), time, dtype=torch.float64, device=x0.device)
            p = model.logits(model.sde.perturb(x0, t, eps), t).log_softmax(1)
            right += int((p.argmax(1) == y).sum())
            nats -= float(p.gather(1, y[:, None]).sum())
        alpha, sigma = (float(value) for value in model.sde.marginal(time))
        rho = sigma / alpha if alpha else float("inf")
        found.append(Accuracy(time, rho, right / len(index), nats / len(index)))
    return found
