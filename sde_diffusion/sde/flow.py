r"""The straight path of flow matching and rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE, as_float64, as_times


@dataclass(frozen=True)
class Flow(SDE):
    """The straight path alpha = 1 - t, sigma = t of flow matching; velocity is dx/dt = eps - x_0.

    >>> float(Flow().half_log_snr(0.5))
    0.0
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: 1 / (1 + exp(lambda))."""
        return torch.sigmoid(-as_float64(half_log_snr))

    def velocity_weights(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """v = eps - x_0 (Lipman et al. 2023, eq. 23)."""
        one = torch.ones_like(as_times(t))
        return -one, one
