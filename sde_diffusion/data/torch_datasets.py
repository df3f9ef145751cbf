"""What a torch ``Dataset`` or ``DataLoader`` holds, read once.

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


class Items(NamedTuple):
    """Samples (N, ...), labels (N,) or None, and the name of the data set."""

    x: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    name: str


def read_items(source: Any) -> Items:
    """Return what a data set or loader holds.

    An item is a sample, (sample, label), (sample,) or a dict with one of ``SAMPLES`` and perhaps one of ``LABELS``; a
    sample is a tensor, an array or a PIL image.

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
    for k, item in enumerate(items):
        sample, label = _parts(item, f"item {k} of {name}")
        x = _array(sample, f"item {k} of {name}")
        if samples and x.shape != samples[0].shape:
            raise InputError(
                f"item {k} of {name} has shape {x.shape}, but item 0 has {samples[0].shape}; bring all samples to one "
                "shape, with a transform for example"
            )
        samples.append(x)
        labels.append(label)
    if not samples:
        raise InputError(f"{name} has no items")
    if all(label is None for label in labels):
        return Items(np.stack(samples), None, name)
    return Items(np.stack(samples), _whole(labels, name), name)


def _parts(item: Any, what: str) -> tuple[Any, Any]:
    """The sample and the label, None where there is none."""
    if isinstance(item, Mapping):
        found = next((key for key in SAMPLES if key in item), None)
        if found is None:
            raise InputTypeError(f"{what} has the keys {', '.join(map(str, item))}; call the sample 'x' or 'image'")
        return item[found], next((item[key] for key in LABELS if key in item), None)
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise InputTypeError(f"{what} has {len(item)} parts; expected a sample, or (sample, label)")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


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
