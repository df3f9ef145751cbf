"""Protocol of the model of a reverse process: the posterior mean, its cost and its domain."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Denoiser(Protocol):
    """A model of D(x, t) = E[x_0 | x_t = x] on a path x_t = alpha x_0 + sigma eps.

    Attributes:
        cost: network evaluations in one call of ``denoise``; 2 for a guided pair.
    """

    cost: int

    @property
    def sde(self) -> Any:
        """The path that the model was made for."""

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[x_0 | x_t = x], like x (B, ...), at times t (B,)."""

    def check_defined_at_pure_noise(self) -> None:
        """Raise ValueError if alpha(1) = 0 and the network's output does not determine x_0 there."""
