"""A data set in memory: samples, labels, and the one rule by which they become a network's input.

Images are kept as bytes, 0..255, and become x / 127.5 - 1 in [-1, 1] when a batch is taken.
Everything else is kept as float32 and not scaled. `sde_diffusion.data.pixels.to_uint8` is the way
back.

A set that was prepared (`sde_diffusion.data.prepared`) stays in its file. Every batch maps the file anew: pages of a
mapping that lives on are counted as memory of the process, and after an epoch these would be the whole set.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sde_diffusion.data.conditions import Conditions, as_conditions
from sde_diffusion.data.labels import without_gaps
from sde_diffusion.data.torch_datasets import read_items
from solvers.display.displayed import Displayed, finished
from solvers.display.figures import samples_figure
from solvers.display.result_table import ResultTable
from solvers.errors import InputError, InputTypeError, choose

KINDS = ("image", "vector", "signal")
CHUNK = 2**24  # values read at once
LAYOUTS = ("channels-first", "channels-last")
CHANNELS = (1, 3, 4, 2)  # of an image, where its shape is to tell which axis has them, the most usual first
_PLOTTED = 2000  # samples of a figure
SEEN = 2**23  # values that `describe` looks at: all of a small set, the beginning of a large one


@dataclass(frozen=True, eq=False, repr=False)
class Data(Displayed):
    """A data set: samples (N, ...), and labels or conditions of theirs where it has them.

    Args:
        name: name in messages and run files.
        x: (N, ...) of rank 2 or more, uint8 for the bytes of images, else float32.
        labels: (N,) int64 from 0 up, or None.
        kind: "image" (N, C, H, W), "vector" (N, D) or "signal" (anything else).
        file: the .npy file that x is mapped from, where it is not in memory. It is trusted to be finite.
        class_names: what the classes are called, or the numbers that they had where these have gaps.
        condition: a vector, an image or tokens for each sample, or None.
        layout: that of the array that x was made from, where one was given; x itself has its channels first.
        source: fingerprint of the samples, if these are their latents.

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
    class_names: tuple[str, ...] | None = None
    condition: Conditions | None = None
    layout: str | None = None
    source: str | None = None

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
        if self.condition is not None and len(self.condition) != len(x):
            raise InputError(f"{self.name}: {len(self.condition)} conditions for {len(x)} samples; expected one each")

    def __repr__(self) -> str:
        labels = "no labels" if self.classes is None else f"{self.classes} classes"
        return f"Data({self.name!r}: {len(self)} {self.kind}s {self.shape}, {labels})"

    def table(self) -> ResultTable:
        """Counts, shape, range and spread of the network's input, and the number of samples in each class."""
        some = self.batch(slice(0, max(1, SEEN // self.x[0].numel()))).double()
        values = {
            "samples": len(self),
            "kind": self.kind,
            "shape": self.shape,
            "least": float(some.min()),
            "most": float(some.max()),
            "mean": float(some.mean()),
            "std": float(some.std(correction=0)),
        }
        facts = {k: (f"{v:.4g}" if isinstance(v, float) else str(v), v) for k, v in values.items()}
        if self.labels is not None:
            for k, count in enumerate(self.labels.bincount().tolist()):
                facts[f"class {self.class_names[k] if self.class_names else k}"] = str(count), count
        return ResultTable.of_facts(facts, self.name)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The first samples as a matplotlib figure: images, points in 2-D, signals, or a pair plot of vectors.

        Args:
            path: a .png, .svg or .pdf file to write it to as well.

        Raises:
            ValueError: samples of another shape, or another suffix.
        """
        return finished(samples_figure(self.batch(slice(0, _PLOTTED)), title=self.name), path)

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
        """Return the stored samples at these positions, uint8 or float32."""
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
        """Return a readable line: counts, shape, range and spread of the network's input.

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


def as_data(
    x: ArrayLike | Tensor | Dataset[Any] | DataLoader[Any],
    labels: ArrayLike | Tensor | None = None,
    name: str | None = None,
    *,
    layout: str | None = None,
    condition: ArrayLike | Tensor | Conditions | None = None,
) -> Data:
    """Return an array, or what a torch data set or loader holds, as a data set.

    Type and shape say what an array means, the same for bytes and for floats:

    =====================  ==============================================  =======================
    type and shape         is read as                                      a batch holds
    =====================  ==============================================  =======================
    uint8 (N, H, W)        gray images, kept as (N, 1, H, W)               bytes / 127.5 - 1
    any (N, C, H, W)       images, where C is 1, 3, 4 or 2 ...             bytes / 127.5 - 1,
    any (N, H, W, C)       ... the first of these on axis 1 or else 3,     or the values, as
                           or as ``layout`` says                           float32
    floats (N, C, H, W)    images of C channels, where neither axis        the values, as float32
                           has 1 to 4
    uint8, rank 5 and up   signals                                         bytes / 127.5 - 1
    numbers (N, D)         vectors                                         the values, as float32
    numbers, other ranks   signals                                         the values, as float32
    =====================  ==============================================  =======================

    Numbers are of any real type; uint8 of rank 2 are numbers too. Labels with gaps become 0 to K - 1, and the numbers
    that they were are kept as ``class_names``. A torch data set is read once, item by item, each a sample,
    (sample, label), (sample, condition) or (sample, label, condition).

    Args:
        x: the samples.
        labels: one whole number or name for each.
        name: what messages call the data; "array", or the class of a torch data set by default.
        layout: "channels-first" or "channels-last", of images of rank 4; by the shape when None.
        condition: a vector (N, K), an image (N, C, ...) or tokens (N, n, width) for each (``as_conditions``).

    Raises:
        TypeError: values or labels that are not real numbers (objects, strings, complex).
        ValueError: a rank below 2, no samples, bytes of rank 4 without a channel axis, masked entries, values that
            are not finite in float32 or lose their differences there, labels that do not fit.

    >>> as_data(np.zeros((5, 32, 48, 3), np.uint8)).shape, as_data(np.zeros((5, 32, 48, 3))).shape
    ((3, 32, 48), (3, 32, 48))
    >>> as_data(np.zeros((5, 2)), labels=[0, 1, 2, 0, 1]).classes
    3
    """
    if isinstance(x, (Dataset, DataLoader)):
        items = read_items(x)
        if labels is not None and items.labels is not None:
            raise InputError(f"{items.name} has labels of its own; leave labels= out")
        if condition is not None and items.condition is not None:
            raise InputError(f"{items.name} has conditions of its own; leave condition= out")
        labels = items.labels if labels is None else labels
        condition = items.condition if condition is None else condition
        return as_data(items.x, labels, name or items.name, layout=layout, condition=condition)
    name = name or "array"
    values = real(x, f"{name}: the data")
    if values.ndim < 2:
        raise InputError(
            f"{name}: an array of shape {values.shape}; expected (N, ...) of rank 2 or more, "
            "samples along the first axis"
        )
    of_bytes = values.dtype == np.uint8
    kind = {2: "vector", 4: "image"}.get(values.ndim, "signal")
    if layout is not None and values.ndim != 4:
        raise InputError(f"{name}: a layout applies to images of rank 4; this array has shape {values.shape}")
    if of_bytes and values.ndim == 3:
        kind, values = "image", values[:, None]
    elif values.ndim == 4:
        values = channels_first(values, name, layout)
    if not (of_bytes and kind == "image"):
        values = in_float32(values, name)
        values = values / np.float32(127.5) - 1 if of_bytes and values.ndim > 4 else values
    found, names = (None, None) if labels is None else as_labels(labels, name)
    given = None if condition is None else as_conditions(condition, values.shape[1:], f"{name}: condition")
    return Data(name, torch.tensor(values), found, kind, class_names=names, condition=given, layout=layout)


def channels_first(images: np.ndarray, name: str, layout: str | None = None) -> np.ndarray:
    """Return images (N, C, H, W) or (N, H, W, C) as (N, C, H, W).

    Without a layout the first of ``CHANNELS`` on axis 1 or else on axis 3 says where the channels are; floats with
    neither have theirs first, and so have floats of at most 4 entries along axis 2: (16, 4, 4) are 16 maps.
    """
    if layout is not None:
        layout = choose(layout, {known: known for known in LAYOUTS}, "layout")
    for channels in () if layout else CHANNELS:
        if images.shape[1] == channels:
            layout = LAYOUTS[0]
            break
        if images.shape[3] == channels and (images.dtype == np.uint8 or images.shape[2] > max(CHANNELS)):
            layout = LAYOUTS[1]
            break
    if layout is None and images.dtype == np.uint8:
        raise InputError(
            f"{name}: bytes of shape {images.shape} are no images: neither axis 1 nor axis 3 has 1 to "
            "4 channels; give (N, H, W), (N, C, H, W) or (N, H, W, C), say which with layout= (--layout), or give "
            "floats for anything else"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if layout == LAYOUTS[1] else images


def in_float32(values: np.ndarray, name: str) -> np.ndarray:
    """Return numbers as float32, or say that their differences would be lost: 1e9 +- 1 is a constant there.

    Raises:
        ValueError: rounding changes an entry by more than 1 % of its deviation.
    """
    with np.errstate(over="ignore"):  # too large for float32 is reported as not finite
        rounded = values.astype(np.float32)
    if values.size == 0 or values.dtype.itemsize <= 2 or values.dtype == np.float32 or not np.isfinite(rounded).all():
        return rounded
    axes = 0 if values.ndim == 2 else (0, *range(2, values.ndim))
    error = np.abs(rounded - values.astype(np.float64)).max(axes)
    spread = values.std(axes, dtype=np.float64)
    if ((error > 0.01 * spread) & (spread > 1e-12 * np.abs(values).max(axes))).any():
        worst = int(np.argmax(error / np.maximum(spread, 1e-300)))
        raise InputError(
            f"{name}: rounding to float32 changes entry {worst} by up to {error.flat[worst]:.3g}, too much for its "
            f"deviation of {np.asarray(spread).flat[worst]:.3g}; subtract an offset first"
        )
    return rounded


def as_labels(labels: ArrayLike | Tensor, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return whole numbers or names as int64 labels without gaps, and what they were where they were others.

    >>> as_labels(["dog", "cat", "dog"], "pets")
    (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    values = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(values, np.ndarray) and values.dtype.kind == "U" and values.ndim == 1:
        kinds, places = np.unique(values, return_inverse=True)
        return torch.tensor(places.reshape(-1).astype(np.int64)), tuple(map(str, kinds.tolist()))
    if values.dtype in (torch.bool, np.bool_) or (isinstance(values, np.ndarray) and values.dtype.kind not in "iuf"):
        raise InputTypeError(f"{name}: the labels are {values.dtype}; expected whole numbers from 0 up, or names")
    values = real(labels, f"{name}: the labels")
    if not np.issubdtype(values.dtype, np.integer):
        raise InputTypeError(f"{name}: the labels are {values.dtype}; expected whole numbers from 0 up, or names")
    index, names = without_gaps(values.astype(np.int64))
    return torch.tensor(index), names


def real(x: ArrayLike | Tensor, what: str) -> np.ndarray:
    """Return x as an array of real numbers; the error names another type."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_meta:
            found = "on the meta device" if x.is_meta else str(x.layout)
            raise InputTypeError(f"{what} is a tensor {found}; expected one with its values, x.to_dense()")
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # numpy has no bfloat16
    if isinstance(x, np.ma.MaskedArray) and (hidden := int(np.ma.getmaskarray(x).sum())):
        raise InputError(f"{what}: {hidden} of {x.size} values are masked; fill them in, or drop those samples")
    try:
        array = np.asarray(x)
    except ValueError as error:  # nested lists of unequal lengths
        raise InputError(f"{what} does not form one array: samples of mixed shapes? ({error})") from None
    if array.dtype == object or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise InputTypeError(f"{what} is of type {array.dtype}; expected real numbers")
    return array
