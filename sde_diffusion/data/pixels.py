"""Pixels: model values in [-1, 1] to bytes, in one place."""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.errors import InputError


def to_uint8(x: Tensor) -> Tensor:
    """Return round((x + 1) * 127.5), clamped to 0..255, as uint8: the inverse of x / 127.5 - 1.

    Args:
        x: any shape; values in [-1, 1], what lies outside is clamped.

    Raises:
        ValueError: values that are not finite.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 1.7]))
    tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if not (finite := x.isfinite()).all():
        raise InputError(f"{int((~finite).sum())} of {x.numel()} values are not finite: no bytes for them")
    return ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
