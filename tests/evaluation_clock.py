"""A clock of network evaluations, so that work within a time limit is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sde_diffusion import ScoreModel


def evaluation_clock(model: ScoreModel, seconds: float = 1e-5) -> Callable[[], float]:
    """A clock that each sample evaluated by this model advances by so many seconds, and nothing else."""
    spent, denoise = 0.0, model.denoise

    def counted(x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        nonlocal spent
        spent += seconds * len(x)
        return denoise(x, t, **condition)

    model.denoise = counted  # type: ignore[method-assign]
    return lambda: spent
