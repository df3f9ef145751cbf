"""The measured time of a network evaluation, from which the time of longer work is estimated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from solvers.conditions import cut


@torch.no_grad()
def seconds_per_evaluation(
    model: ScoreModel,
    x1: Tensor,
    batch_size: int,
    given: dict[str, Any],
    rows: int | None,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """The time of one network evaluation of one sample on the clock ``now``, the faster of two calls.

    The conditions are bound to the model and have rows for ``rows`` samples, None for any number.
    """
    n = min(len(x1), batch_size, 32, rows or 32)
    x, t = x1[:n], torch.full((n,), 0.5, dtype=torch.float64, device=x1.device)
    given = given if rows is None else cut(given, rows, torch.arange(n, device="cpu"))
    best = math.inf
    for _ in range(2):
        start = now()
        float(model.denoise(x, t, **given).sum())  # waits for the device
        best = min(best, now() - start)
    return best / n / model.cost
