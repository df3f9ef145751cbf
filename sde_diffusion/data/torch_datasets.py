"""The items of a torch ``Dataset`` or ``DataLoader``, read once.

Training draws its own batches, in an order that a resumed run repeats, so a loader's batch size and shuffling do not
matter: its data set is read from the first item to the last, once. What a transform draws at random is drawn then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sde_diffusion.data.images import decode
from solvers.errors import InputError, InputTypeError

SAMPLES = ("x", "image", "img", "images", "pixel_values", "data")
LABELS = ("label", "labels", "y", "target")
CONDITIONS = ("condition", "conditioning_image", "context")


class Items(NamedTuple):
    """Samples (N, ...), labels (N,) or None, the name of the data set, and conditions (N, ...) or None."""

    x: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    name: str
    condition: np.ndarray[Any, Any] | None = None


def read_items(source: Any) -> Items:
    """Return what a data set or loader holds.

    An item is a sample, (sample,), (sample, label), (sample, condition), (sample, label, condition), or a dict with one
    of ``SAMPLES`` and perhaps one of ``LABELS`` and of ``CONDITIONS``. A sample is a tensor, an array or a PIL image,
    and so is a condition; a label is one whole number.

    Raises:
        ValueError: no items, or samples of different shapes.
        TypeError: an item or label that is none of these.

    >>> from torch.utils.data import TensorDataset
    >>> found = read_items(TensorDataset(torch.zeros(3, 2), torch.tensor([1, 0, 1])))
    >>> found.x.shape, found.labels.tolist(), found.name
    ((3, 2), [1, 0, 1], 'TensorDataset')
    """
    dataset = source.dataset if isinstance(source, DataLoader) else source
    name = type(dataset).__name__
    items: Iterable[Any]
    if isinstance(dataset, IterableDataset):
        items = iter(dataset)
    elif hasattr(dataset, "__len__"):
        items = (dataset[k] for k in range(len(dataset)))
    else:
        raise InputTypeError(f"{name} has no length: expected a map-style data set, with __getitem__ and __len__")
    samples: list[np.ndarray[Any, Any]] = []
    labels: list[Any] = []
    conditions: list[np.ndarray[Any, Any] | None] = []
    for k, item in enumerate(items):
        sample, label, condition = _parts(item, f"item {k} of {name}")
        samples.append(_like(samples, _array(sample, f"item {k} of {name}"), k, f"{name}"))
        labels.append(label)
        if condition is not None:
            condition = _array(condition, f"the condition of item {k} of {name}")
            condition = _like([c for c in conditions[:1] if c is not None], condition, k, f"the conditions of {name}")
        conditions.append(condition)
    if not samples:
        raise InputError(f"{name} has no items")
    given = [condition for condition in conditions if condition is not None]
    if given and len(given) < len(samples):
        raise InputError(f"{len(given)} of {len(samples)} items of {name} have a condition; give each of them one")
    whole = None if all(label is None for label in labels) else _whole(labels, name)
    return Items(np.stack(samples), whole, name, np.stack(given) if given else None)


def _like(before: list[np.ndarray[Any, Any]], value: np.ndarray[Any, Any], k: int, what: str) -> np.ndarray[Any, Any]:
    if before and value.shape != before[0].shape:
        raise InputError(
            f"item {k} of {what} has shape {value.shape}, but item 0 has {before[0].shape}; bring all samples to one "
            "shape, with a transform for example"
        )
    return value


def _parts(item: Any, what: str) -> tuple[Any, Any, Any]:
    """The sample, the label and the condition, None where there is none."""
    if isinstance(item, Mapping):
        found = next((key for key in SAMPLES if key in item), None)
        if found is None:
            raise InputTypeError(f"{what} has the keys {', '.join(map(str, item))}; call the sample 'x' or 'image'")
        label, condition = (next((item[key] for key in keys if key in item), None) for keys in (LABELS, CONDITIONS))
        return item[found], label, condition
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2, 3):
            raise InputTypeError(
                f"{what} has {len(item)} parts; expected a sample, (sample, label), (sample, condition) or (sample, "
                "label, condition)"
            )
        if len(item) == 2 and _is_condition(item[1]):
            return item[0], None, item[1]
        return item[0], *([*item[1:], None, None][:2])
    return item, None, None


def _is_condition(value: Any) -> bool:
    """Whether the second part of an item is a condition: an image, or an array of more than one number."""
    if isinstance(value, Image.Image):
        return True
    return isinstance(value, (Tensor, np.ndarray)) and (not _single(value) or "float" in str(value.dtype))


def _array(sample: Any, what: str) -> np.ndarray[Any, Any]:
    if isinstance(sample, Image.Image):
        return decode(sample, what).transpose(2, 0, 1)
    if isinstance(sample, Tensor):
        sample = sample.detach().cpu()
        return np.asarray(sample.float() if sample.dtype == torch.bfloat16 else sample)
    if isinstance(sample, np.ndarray):
        return sample
    raise InputTypeError(f"{what} is of type {type(sample).__name__}; expected a tensor, an array or a PIL image")


def _whole(labels: list[Any], name: str) -> np.ndarray[Any, Any]:
    out = []
    for k, label in enumerate(labels):
        value = label.item() if isinstance(label, (Tensor, np.ndarray, np.generic)) and _single(label) else label
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputTypeError(f"the label of item {k} of {name} is {value!r}; expected a whole number")
        out.append(value)
    return np.asarray(out, np.int64)


def _single(label: Tensor | np.ndarray[Any, Any] | np.generic) -> bool:
    return int(np.prod(label.shape)) == 1
