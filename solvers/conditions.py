"""Conditions of a batch: tensors with one row for each sample, inside dicts and tuples too, and settings of the call.

A condition is whatever a network takes besides (x, t). A tensor whose first dimension is the batch has a row for each
sample, and follows the sample when a batch is cut or reordered. Everything else (a number, a flag, a tensor of another
length, such as positions that all samples share) is passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def map_rows(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A condition with every tensor of ``batch`` rows changed; dicts, lists and tuples are entered.

    >>> map_rows({"text": torch.zeros(3, 2), "scale": 0.5}, 3, lambda rows: rows[:1])
    {'text': tensor([[0., 0.]]), 'scale': 0.5}
    """
    if isinstance(value, Tensor):
        return change(value) if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, dict):
        return {name: map_rows(entry, batch, change) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [map_rows(entry, batch, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def cut(condition: Mapping[str, Any], batch: int, rows: Tensor, device: torch.device | None = None) -> dict[str, Any]:
    """The conditions of some samples of a batch, on a device.

    >>> cut({"label": torch.tensor([3, 4, 5]), "strength": 0.5}, 3, torch.tensor([2, 0]))
    {'label': tensor([5, 3]), 'strength': 0.5}
    """

    def chosen(value: Tensor) -> Tensor:
        return value[rows.to(value.device)].to(device or value.device)

    return {name: map_rows(value, batch, chosen) for name, value in condition.items()}


def in_dtype(condition: Mapping[str, Any], batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The conditions with their floating-point rows in a dtype.

    >>> in_dtype({"context": torch.zeros(1, 1), "label": torch.tensor([3])}, 1, torch.float64)
    {'context': tensor([[0.]], dtype=torch.float64), 'label': tensor([3])}
    """

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return {name: map_rows(value, batch, cast) for name, value in condition.items()}
