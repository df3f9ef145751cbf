r"""Networks trained on discrete time steps, as score models in continuous time.

A DDPM network receives the index i - 1 in 0, ..., T - 1 of a step instead of a time. ``DiscreteModel`` translates:
on times i/T it is that network exactly, and every solver runs on it. Between two steps it evaluates the network at
the nearest index or, if its embedding allows, at a fractional one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM
from solvers.errors import InputError, InputTypeError


class DiscreteModel(ScoreModel):
    """A score model in continuous time from a network that receives the index of a DDPM step.

    Args:
        network: (x, index) -> like x, or with twice the channels; index is (B,) int64 in 0, ..., T - 1.
        sde: the process it was trained on.
        predicts: the parametrization of the network's output.
        shape: shape of one sample.
        rounded: call the network at the nearest step; False passes a fraction, in the dtype of x.

    >>> import torch
    >>> seen = []
    >>> model = DiscreteModel(lambda x, i: seen.append(i) or torch.zeros_like(x))
    >>> _ = model.noise(torch.zeros(3, 2), torch.tensor([1.0, 0.5, 0.001], dtype=torch.float64))
    >>> seen
    [tensor([999, 499,   0])]
    """

    def __init__(
        self,
        network: Any,
        sde: DDPM | None = None,
        predicts: str = "noise",
        shape: tuple[int, ...] | None = None,
        rounded: bool = True,
    ) -> None:
        sde = DDPM() if sde is None else sde
        if not isinstance(sde, DDPM):
            raise InputTypeError(f"a network of discrete steps needs a DDPM process; got {type(sde).__name__}")
        if predicts == "edm":
            raise InputError("an 'edm' network receives c_noise, not the index of a step; use ScoreModel")
        super().__init__(network, sde, predicts, shape)
        self.rounded = rounded
        self.steps = sde

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """X, and the index of each time."""
        index = self.steps.timestep(t)
        return x, index.round().long() if self.rounded else index.to(x.dtype)
