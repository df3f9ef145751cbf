"""The speed of a network: compiled, in 16 bits, with channels last. Its class and its arguments do not change.

The state of a solver, its coefficients and noise keep their precision: autocast surrounds the network alone, and the
output returns to the dtype of the input. Samples change by the rounding of the network; the record of samples holds
these settings for that reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers.errors import InputError, choose

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions of a network by name."""


@dataclass(frozen=True)
class Speed:
    """Settings of a network's arithmetic.

    Args:
        precision: a name in ``PRECISIONS``.
        compiled: whether ``torch.compile`` compiles the network; the first call of a shape takes a minute or so.

    Raises:
        ValueError: an unknown precision.

    >>> network = Speed("bf16").apply(nn.Linear(2, 2))
    >>> network(torch.ones(1, 2)).dtype, network.weight.dtype
    (torch.float32, torch.float32)
    """

    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self) -> None:
        choose(self.precision, PRECISIONS, "precision")

    @property
    def plain(self) -> bool:
        """Whether the network stays as it is."""
        return self == Speed()

    def apply(self, network: Any) -> Any:
        """Change a network in place, and return it.

        Raises:
            ValueError: it is no module.
        """
        if self.plain:
            return network
        if not isinstance(network, nn.Module):
            raise InputError("--precision and --compile need a network that is a torch module; leave them out")
        first = next(network.parameters(), None)
        if first is not None and first.is_cuda and any(p.ndim == 4 for p in network.parameters()):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.precision != "fp32":
            network.forward = _in_precision(network.forward, PRECISIONS[self.precision])
        if self.compiled:
            network.compile(dynamic=False)
        return network


def _in_precision(forward: Any, dtype: torch.dtype) -> Any:
    @functools.wraps(forward)  # keeps the signature, which says what conditions the network takes
    def cast(x: Tensor, *args: Any, **conditions: Any) -> Any:
        with torch.autocast(x.device.type, dtype=dtype):
            out = forward(x, *args, **conditions)
        return out.to(x.dtype) if isinstance(out, Tensor) else out

    return cast
