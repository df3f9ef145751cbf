"""A data set in memory: samples, labels, and the one rule by which they become a network's input.

Images are kept as bytes, 0..255, and become x / 127.5 - 1 in [-1, 1] when a batch is taken.
Everything else is kept as float32 and is taken as it is. `sde_diffusion.data.pixels.to_uint8` is the way
back.

A set that was prepared (`sde_diffusion.data.prepared`) stays in its file. Every batch maps the file anew: pages of a
mapping that lives on are counted as memory of the process, and after an epoch these would be the whole set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from solvers.errors import InputError, InputTypeError

KINDS = ("image", "vector", "signal")
CHUNK = 2**24  # values read at once
SEEN = 2**23  # values that `describe` looks at: all of a small set, the beginning of a large one


@dataclass(frozen=True, eq=False)
class Data:
    """Samples, and perhaps their labels.

    Args:
        name: name in messages and run files.
        x: (N, ...) of rank 2 or more, uint8 for the bytes of images, else float32.
        labels: (N,) int64 from 0 up, or None.
        kind: "image" (N, C, H, W), "vector" (N, D) or "signal" (anything else).
        file: the .npy file that x is mapped from, where it is not in memory. It is trusted to be finite.

    Raises:
        TypeError: x or labels of another dtype.
        ValueError: no samples, values that are not finite, labels or a kind that do not fit x.

    >>> x = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> data = Data("gray", x, None, "image")
    >>> data.batch([1, 0]).flatten()
    tensor([ 1., -1.])
    """

    name: str
    x: Tensor
    labels: Tensor | None
    kind: str
    file: Path | None = None

    def __post_init__(self) -> None:
        """Validate dtype, rank and finiteness."""
        x, labels = self.x, self.labels
        if self.kind not in KINDS:
            raise InputError(f"{self.name}: unknown kind '{self.kind}'; choices: {', '.join(KINDS)}")
        if x.dtype not in (torch.uint8, torch.float32) or (x.dtype == torch.uint8 and not self.is_image):
            raise InputTypeError(f"{self.name}: {self.kind} data of {x.dtype}; expected float32, or uint8 for images")
        if x.ndim < 2 or (self.is_image and x.ndim != 4):
            need = "(N, C, H, W)" if self.is_image else "(N, ...) of rank 2 or more"
            raise InputError(f"{self.name}: x has shape {tuple(x.shape)}; expected {need}")
        if x.numel() == 0:
            raise InputError(f"{self.name}: x has shape {tuple(x.shape)}: there is nothing in it")
        if self.file is None and x.is_floating_point() and not (finite := x.isfinite()).all():
            bad = (~finite).nonzero()
            raise InputError(
                f"{self.name}: {len(bad)} of {x.numel()} values are not finite, the first at index "
                f"{tuple(bad[0].tolist())}; clean or drop those samples"
            )
        if labels is not None and labels.dtype != torch.int64:
            raise InputTypeError(f"{self.name}: labels of {labels.dtype}; expected int64")
        if labels is not None and (labels.shape != x.shape[:1] or int(labels.min()) < 0):
            raise InputError(
                f"{self.name}: labels of shape {tuple(labels.shape)}, smallest {labels.min()}; "
                f"expected one per sample, ({len(x)},), from 0 up"
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    @property
    def is_image(self) -> bool:
        """Whether the samples are images."""
        return self.kind == "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def classes(self) -> int | None:
        """The number of classes, largest label + 1, or None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def batch(self, index: Tensor | Sequence[int] | slice) -> Tensor:
        """Return the samples at these positions as float32, bytes scaled by x / 127.5 - 1."""
        x = self.rows(index)
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x

    def rows(self, index: Tensor | Sequence[int] | slice) -> Tensor:
        """Return the samples at these positions as they are kept, uint8 or float32."""
        if self.file is None:
            return self.x[index]
        mapped = np.load(self.file, mmap_mode="r")
        return torch.tensor(mapped[index if isinstance(index, slice) else np.asarray(index)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of kind, shape, type, samples and labels; the name does not matter.

        >>> as_data([[1.0, 2.0]]).fingerprint[:8]
        '2065c768'
        """
        digest = hashlib.sha256(f"{self.kind} {self.x.dtype} {tuple(self.x.shape)}".encode())
        count = max(1, CHUNK // max(1, self.x[0].numel()))
        for start in range(0, len(self), count):
            digest.update(self.rows(slice(start, start + count)).cpu().numpy().tobytes())
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return one line for people: counts, shape, range and spread of what a network will see.

        >>> as_data([[1.0, 2.0], [3.0, 4.0]], name="four").describe()
        'four: 2 vectors of shape (2,), no labels; values 1 to 4, mean 2.5, std 1.118'
        """
        some = self.batch(slice(0, max(1, SEEN // self.x[0].numel()))).double()
        labels = "no labels" if self.classes is None else f"{self.classes} classes"
        return (
            f"{self.name}: {len(self)} {self.kind}s of shape {self.shape}, {labels}; "
            f"values {some.min():.4g} to {some.max():.4g}, "
            f"mean {some.mean():.4g}, std {some.std(correction=0):.4g}"
        )


def as_data(x: ArrayLike | Tensor, labels: ArrayLike | Tensor | None = None, name: str = "array") -> Data:
    """Return an array as a data set, reading its meaning from its type and shape.

    =====================  ==============================================  =======================
    type and shape         is read as                                      a batch holds
    =====================  ==============================================  =======================
    uint8 (N, H, W)        gray images, kept as (N, 1, H, W)               bytes / 127.5 - 1
    uint8 (N, C, H, W)     images, when C is 1, 3, 4 or 2 ...              bytes / 127.5 - 1
    uint8 (N, H, W, C)     ... the first of these on axis 1 or else 3      bytes / 127.5 - 1
    numbers (N, D)         vectors                                         the values, as float32
    numbers (N, C, H, W)   images already scaled to about [-1, 1]          the values, as float32
    numbers, other ranks   signals                                         the values, as float32
    =====================  ==============================================  =======================

    Numbers are of any real type; uint8 of rank 2 are numbers too, and so is uint8 beyond rank 4.

    Raises:
        TypeError: values or labels that are not real numbers (objects, strings, complex).
        ValueError: a rank below 2, no samples, bytes of rank 4 without a channel axis, values that
            are not finite in float32, labels that do not fit.

    >>> as_data(np.zeros((5, 32, 48, 3), np.uint8)).shape
    (3, 32, 48)
    >>> as_data(np.zeros((5, 2)), labels=[0, 1, 2, 0, 1]).classes
    3
    """
    values = real(x, f"{name}: the data")
    if values.ndim < 2:
        raise InputError(
            f"{name}: an array of shape {values.shape}; expected (N, ...) of rank 2 or more, "
            "samples along the first axis"
        )
    kind = {2: "vector", 4: "image"}.get(values.ndim, "signal")
    if values.dtype == np.uint8 and values.ndim in (3, 4):
        kind, values = "image", channels_first(values, name)
    else:
        with np.errstate(over="ignore"):  # too large for float32 is reported as not finite
            values = values.astype(np.float32)
    return Data(name, torch.tensor(values), None if labels is None else as_labels(labels, name), kind)


def channels_first(images: np.ndarray, name: str) -> np.ndarray:
    """Return bytes (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    for channels in (1, 3, 4, 2):
        if images.shape[1] == channels:
            return images
        if images.shape[3] == channels:
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise InputError(
        f"{name}: bytes of shape {images.shape} are no images: neither axis 1 nor axis 3 has 1 to "
        "4 channels; give (N, H, W), (N, C, H, W) or (N, H, W, C), or floats for anything else"
    )


def as_labels(labels: ArrayLike | Tensor, name: str) -> Tensor:
    """Return whole numbers as int64 labels."""
    values = real(labels, f"{name}: the labels")
    if not np.issubdtype(values.dtype, np.integer):
        raise InputTypeError(f"{name}: the labels are {values.dtype}; expected whole numbers from 0 up")
    return torch.tensor(values.astype(np.int64))


def real(x: ArrayLike | Tensor, what: str) -> np.ndarray:
    """Return x as an array of real numbers, or say what it is instead."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # numpy has no bfloat16
    try:
        array = np.asarray(x)
    except ValueError as error:  # nested lists of unequal lengths
        raise InputError(f"{what} does not form one array: samples of mixed shapes? ({error})") from None
    if array.dtype == object or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise InputTypeError(f"{what} is of type {array.dtype}; expected real numbers")
    return array
