r"""Units of the data, and those that a network sees.

    x = shift + scale z,      log p(x) = log p(z) - sum log scale

x is the data as they are given, z what a model is trained on. A process mixes z with noise of unit variance, so z must
have about unit scale: temperatures of 300 +- 10 or densities of -1000 to 2000 have not. shift and scale are measured
once, per entry of vectors and per channel of all else, and travel with the model; samples, likelihoods, codes and
metrics are in the units of x.

    standard   shift is the mean, scale the standard deviation
    range      shift is the middle of the smallest and the largest value, scale half their distance: z in [-1, 1]
    none       z = x

Images of bytes are x = bytes / 127.5 - 1 in every case, which is their range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from sde_diffusion.data.dataset import Data
from solvers.errors import InputError, choose

METHODS = ("none", "range", "standard")
AUTO = "auto"
_CHUNK = 2**22  # values looked at together
_MOST = 2**26  # values looked at in all: evenly spaced samples of a larger set


class NormalizationEntry(TypedDict):
    """A normalization as JSON holds it: one shift and one scale for each entry of ``shape``."""

    method: str
    shape: list[int]
    shift: list[float]
    scale: list[float]


@dataclass(frozen=True, eq=False)
class Normalization:
    """The affine map between data x and what a network sees, z.

    Args:
        method: a name in ``METHODS``.
        shift: float64, broadcast against one sample.
        scale: like shift, positive.

    Raises:
        ValueError: an unknown method, values that are not finite, or a scale that is not positive.

    >>> celsius = Normalization("standard", torch.tensor([20.0]), torch.tensor([5.0]))
    >>> celsius.to_model(torch.tensor([[30.0]])), celsius.to_data(torch.tensor([[2.0]]))
    (tensor([[2.]]), tensor([[30.]]))
    """

    method: str
    shift: Tensor
    scale: Tensor
    _copies: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        choose(self.method, dict.fromkeys(METHODS), "normalization")
        object.__setattr__(self, "shift", self.shift.detach().double().cpu())
        object.__setattr__(self, "scale", self.scale.detach().double().cpu())
        fit = self.shift.shape == self.scale.shape
        if not (fit and bool(self.shift.isfinite().all() and self.scale.isfinite().all() and (self.scale > 0).all())):
            raise InputError("a normalization has finite shifts and as many finite, positive scales")

    @property
    def is_identity(self) -> bool:
        """Whether z = x."""
        return self.method == "none"

    def same_as(self, other: Normalization) -> bool:
        """Return whether both are one map.

        >>> IDENTITY.same_as(Normalization("standard", torch.zeros(1), torch.ones(1)))
        True
        """
        try:
            same = (self.shift == other.shift).all() & (self.scale == other.scale).all()
        except RuntimeError:  # of other shapes
            return False
        return bool(same)

    @property
    def largest_scale(self) -> float:
        """The factor from a bound of an error in z to one in x."""
        return float(self.scale.max())

    def to_model(self, x: Tensor) -> Tensor:
        """Return z = (x - shift) / scale for samples x (B, ...), in their dtype and on their device."""
        if self.is_identity:
            return x
        shift, scale = self._like(x)
        return (x - shift) / scale

    def to_data(self, z: Tensor) -> Tensor:
        """Return x = shift + scale z for z (B, ...), in its dtype and on its device."""
        if self.is_identity:
            return z
        shift, scale = self._like(z)
        return shift + scale * z

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Kept, because a copy to a GPU at every training step makes it wait.
        key = (x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = (self.shift.to(x), self.scale.to(x))
        return self._copies[key]

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return sum log scale over the entries of a sample of this shape: log p(x) = log p(z) - log_det.

        >>> half = Normalization("standard", torch.zeros(3, 1, 1), torch.full((3, 1, 1), 0.5))
        >>> round(half.log_det((3, 2, 2)), 4)  # 12 log(1/2)
        -8.3178
        """
        return 0.0 if self.is_identity else float(self.scale.log().expand(shape).sum())

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a normalization of samples of another shape.

        Raises:
            ValueError: the shifts do not broadcast to the shape.
        """
        try:
            self.shift.expand(shape)
        except RuntimeError:
            raise InputError(
                f"the normalization has shifts of shape {tuple(self.shift.shape)}, which is not that of samples {shape}"
            ) from None

    def describe(self) -> str:
        """Return a readable line.

        >>> Normalization("standard", torch.tensor([[[20.0]]]), torch.tensor([[[5.0]]])).describe()
        'standard: (x - 20) / 5'
        """
        if self.is_identity:
            return "none: values as they are"
        if self.shift.numel() == 1:
            return f"{self.method}: (x - {float(self.shift):.6g}) / {float(self.scale):.6g}"
        unit = "channel" if self.shift.ndim > 1 else "entry"
        low, high = self.shift.min(), self.shift.max()
        least, most = self.scale.min(), self.scale.max()
        return (
            f"{self.method}, per {unit}: shifts {float(low):.4g} to {float(high):.4g}, "
            f"scales {float(least):.4g} to {float(most):.4g}"
        )

    def entry(self) -> NormalizationEntry:
        """Return the map as JSON can hold it; floats are exact."""
        return {
            "method": self.method,
            "shape": list(self.shift.shape),
            "shift": self.shift.flatten().tolist(),
            "scale": self.scale.flatten().tolist(),
        }

    @classmethod
    def from_entry(cls, entry: NormalizationEntry | None) -> Normalization:
        """Return the map of an entry; the identity for None, which models before version 0.2 have.

        Raises:
            ValueError: the entry does not hold together.

        >>> kept = Normalization("range", torch.tensor([1.0]), torch.tensor([3.0])).entry()
        >>> Normalization.from_entry(kept).describe(), Normalization.from_entry(None).is_identity
        ('range: (x - 1) / 3', True)
        """
        if entry is None:
            return IDENTITY
        shape, count = entry["shape"], math.prod(entry["shape"])
        if any(size < 1 for size in shape) or not count == len(entry["shift"]) == len(entry["scale"]):
            raise InputError(
                f"a normalization of shape {shape} needs {count} shifts and scales; it has {len(entry['shift'])} and "
                f"{len(entry['scale'])}"
            )
        shift, scale = (torch.tensor(entry[key], dtype=torch.float64).reshape(shape) for key in ("shift", "scale"))
        return cls(entry["method"], shift, scale)


IDENTITY = Normalization("none", torch.tensor(0.0), torch.tensor(1.0))


def measure_normalization(data: Data, method: str = AUTO) -> Normalization:
    """Return the default normalization of data.

    An entry that never changes gets the smallest scale of the others, and 1 if there is none.

    Args:
        data: what a model will be trained on.
        method: a name in ``METHODS``, or "auto": range for images of bytes, which is what they are already, and
            standard for numbers.

    Raises:
        ValueError: an unknown method.

    >>> from sde_diffusion.data import as_data, load_data
    >>> measure_normalization(as_data([[290.0, 5.0], [310.0, 5.0]])).to_model(torch.tensor([[310.0, 5.0]]))
    tensor([[1., 0.]])
    >>> measure_normalization(load_data("digits")).is_identity
    True
    """
    choose(method, dict.fromkeys((AUTO, *METHODS)), "normalization")
    of_bytes = data.x.dtype == torch.uint8
    if method == AUTO:
        method = "range" if of_bytes else "standard"
    if method == "none" or (method == "range" and of_bytes):
        return IDENTITY
    shift, scale = (_range if method == "range" else _moments)(data)
    varies = scale > 0
    usual = float(scale[varies].min()) if bool(varies.any()) else 1.0
    shape = (-1, *(1,) * (len(data.shape) - 1))
    return Normalization(method, shift.reshape(shape), torch.where(varies, scale, usual).reshape(shape))


def _chunks(data: Data) -> list[Tensor]:
    """Indices of the samples that are looked at, some at a time."""
    size = data.x[0].numel()
    count = min(len(data), max(2, _MOST // size))
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).round().long()
    return list(torch.split(index, max(1, _CHUNK // size)))


def _columns(data: Data, index: Tensor) -> Tensor:
    """Values (channels or entries, others) float64."""
    return data.batch(index).double().transpose(0, 1).flatten(1)


def _moments(data: Data) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, by the deviations from the first mean: exact for 300 +- 1e-3 as well."""
    chunks = _chunks(data)
    origin = _columns(data, chunks[0]).mean(1, keepdim=True)
    n, first, second = 0, torch.zeros(len(origin), dtype=torch.float64), torch.zeros(len(origin), dtype=torch.float64)
    for index in chunks:
        deviation = _columns(data, index) - origin
        n += deviation.shape[1]
        first += deviation.sum(1)
        second += deviation.square().sum(1)
    mean = first / n
    variance = (second / n - mean.square()).clamp_min(0)
    constant = variance <= 1e-24 * (origin[:, 0] + mean).square()  # what rounding leaves of no variance
    return origin[:, 0] + mean, variance.sqrt().masked_fill(constant, 0)


def _range(data: Data) -> tuple[Tensor, Tensor]:
    """The middle between the smallest and the largest value, and half their distance."""
    parts = [_columns(data, index).aminmax(dim=1) for index in _chunks(data)]
    low = torch.stack([part.min for part in parts]).amin(0)
    high = torch.stack([part.max for part in parts]).amax(0)
    return (low + high) / 2, (high - low) / 2
