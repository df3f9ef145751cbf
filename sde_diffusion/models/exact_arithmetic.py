"""Exact models compute in float32 or better, under any autocast or default device.

Under ``torch.autocast`` a matrix product is rounded to bfloat16, with errors of 1e-3 to 1e-2 in what should be the
truth; samples in half precision would do the same to the densities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

M = TypeVar("M")


def as_tensor(values: Any) -> Tensor:
    """A tensor unchanged, and anything else as a tensor on the CPU, for every default device.

    >>> as_tensor([1.0, 2.0])
    tensor([1., 2.])
    """
    return values if isinstance(values, Tensor) else torch.as_tensor(values)


def exactly(method: Callable[[M, Tensor, Tensor], Tensor]) -> Callable[[M, Tensor, Tensor], Tensor]:
    """The method, called without autocast and with x in float32 or better; the result has the dtype of x.

    >>> class Double:
    ...     @exactly
    ...     def of(self, x, t):
    ...         print(x.dtype)
    ...         return 2 * x
    >>> Double().of(torch.ones(1, dtype=torch.bfloat16), torch.ones(1)).dtype
    torch.float32
    torch.bfloat16
    """

    @wraps(method)
    def call(self: M, x: Tensor, t: Tensor, **more: Any) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return method(self, x.to(wide), t, **more).to(x.dtype)
        return method(self, x.to(wide), t, **more).to(x.dtype)

    return call
