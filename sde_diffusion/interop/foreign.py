r"""A network of another library behind the call that score models make.

Libraries differ in the time label that a network receives (an index, sigma, 1000 t, 1 - t), in the order of arguments,
in what comes back, and in precision. ``ForeignNetwork`` is one such convention: it is called with x and our time t,
turns t into its own label in float64, casts x and the conditions to the network's dtype and the answer back to that of
x.

``ForeignModel`` is the score model of such a network. Its state stays in float32 or better while the network computes
in bfloat16 or float16, so that a solver's sums keep their digits.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.models.outputs import modules_in, tensor_of
from sde_diffusion.models.score_model import ScoreModel
from solvers.errors import InputTypeError


class ForeignNetwork(nn.Module):
    """A network in its own convention: a subclass defines its time input and its call.

    Args:
        network: a module, or a function around one; its parameters, device and dtype are seen either way.

    Raises:
        TypeError: nothing that can be called.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if not callable(network):
            raise InputTypeError(f"a network is a module or a function of x and the time; got {type(network).__name__}")
        self.network = network
        if not isinstance(network, nn.Module):
            self.within = nn.ModuleList(modules_in(network))

    needs_null = True
    """Guidance asks what stands for no condition: these networks do not take NaN for it."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the network's floating-point parameters; None without any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def label(self, t: Tensor) -> Tensor:
        """The time input of the network at t (B,) float64."""
        return t

    @abstractmethod
    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """The network's own answer."""

    def forward(self, x: Tensor, t: Tensor, /, **condition: Any) -> Tensor:
        """The answer like x, for x (B, ...) and t (B,) float64."""
        inside = self.dtype or x.dtype
        label = self.label(t)
        if label.is_floating_point():  # 999 is no bfloat16 number
            label = label.to(torch.promote_types(inside, torch.float32))
        answer = self.call(x.to(inside), label, **{name: _cast(value, inside) for name, value in condition.items()})
        return tensor_of(answer).to(x.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A condition with its floating-point tensors in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(entry, dtype) for name, entry in value.items()}
    return value


class ForeignModel(ScoreModel):
    """A ``ForeignNetwork`` as a score model: it receives t itself, in float64."""

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """X and t; c_in x and c_noise for "edm"."""
        if self.predicts == "edm":
            scaled, _ = super().arguments(x, t)
            alpha, sigma = self.sde.marginal(t)
            return scaled, torch.log(sigma / alpha) / 4
        return x, t.double()

    def low_precision(self) -> torch.dtype | None:
        """None: the network casts by itself."""
        return None
