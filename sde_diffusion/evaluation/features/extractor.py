"""A feature extractor: it maps samples to the vectors that metrics compare.

Values are not scaled, so that a metric of temperatures has the units of temperatures. Networks that were trained on
images of bytes are the exception (``takes_bytes``): for them samples are rounded to bytes and scaled to [-1, 1] again,
because a metric must not separate generated images from real ones by their rounding. The value range is then part of
the features (``InRange``; -1 and 1 for images of bytes), and values far outside are never clamped silently.

Reference statistics store the name, the preprocessing and a hash of everything that determines the features, so that
metrics of two extractors are never compared.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.data.pixels import to_uint8
from solvers.errors import InputError

BYTES = "images rounded to bytes, then x / 127.5 - 1"
AS_THEY_ARE = "values as they are"
FEW = 0.01  # the share of values far outside of black and white that passes without a word
_FAR = 1.5  # a sampler overshoots a little; a quarter of the range beyond it is another range


class Features(NamedTuple):
    """Features (B, d) float32, and p(y|x) (B, classes) where the extractor is a classifier, else None."""

    features: Tensor
    probabilities: Tensor | None = None


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is an image.

    >>> is_image((3, 32, 32)), is_image((2,))
    (True, False)
    """
    return len(shape) == 3 and shape[0] in (1, 3)


class Extractor(ABC):
    """The base class of feature extractors: named functions of samples. Subclasses are final and define ``compute``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in tables."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """A hash of the weights, or a version: of all that determines the features besides the preprocessing."""

    @property
    def preprocessing(self) -> str:
        """Preprocessing of a sample."""
        return BYTES if self.takes_bytes else AS_THEY_ARE

    @property
    def takes_bytes(self) -> bool:
        """Whether samples are rounded to the bytes of images first."""
        return False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a sample that it takes; None for any."""
        return None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors that a reference file stores to rebuild the extractor; empty if the name suffices."""
        return {}

    @abstractmethod
    def compute(self, x: Tensor) -> Features:
        """Features of samples (B, ...) that were checked, and rounded where it takes bytes."""

    def unrounded(self, x: Tensor) -> Tensor:
        """Features (B, d) as a smooth function of samples, neither rounded to bytes nor clamped to black and white."""
        return self.compute(x.float()).features

    def outside(self, x: Tensor) -> float:
        """The share of values that rounding to bytes would clamp by more than a quarter of the range.

        >>> from sde_diffusion.evaluation.features import make_extractor
        >>> make_extractor("digits").outside(torch.tensor([0.0, 1.2, 280.0, -3.0]))
        0.5
        """
        return float((x.abs() > _FAR).double().mean()) if self.takes_bytes else 0.0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Features:
        """Features of samples (B, ...).

        Raises:
            ValueError: samples of another shape, or values that are not finite.

        Warns:
            UserWarning: 1 % of the values or more are clamped far to black or white.
        """
        shape = tuple(x.shape[1:])
        if self.shape is not None and shape != self.shape:
            raise InputError(
                f"samples of shape {shape}, but the features '{self.name}' take samples of shape {self.shape}; "
                "images are not resized silently: bring them to that size, or use other features"
            )
        bad = ~x.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise InputError(
                f"{int(bad.sum())} of {len(x)} samples are not finite; the first is {int(bad.nonzero()[0])}"
            )
        if (share := self.outside(x)) > FEW:
            warnings.warn(
                f"{share:.0%} of the values of the samples lie far outside of black and white, and the "
                f"features '{self.name}' see them clamped to bytes; 'pixels' and 'pca' take them as they are",
                stacklevel=2,
            )
        return self.compute(to_uint8(x).float() / 127.5 - 1 if self.takes_bytes else x.float())


@dataclass(frozen=True, eq=False)
class InRange(Extractor):
    """Features of bytes, for samples in which other values than -1 and 1 are black and white.

    Args:
        inner: the features.
        low: the value of black.
        high: the value of white.

    Raises:
        ValueError: ``inner`` takes no bytes, or low is not below high.

    >>> from sde_diffusion.evaluation.features import make_extractor
    >>> x = torch.rand(2, 1, 8, 8)
    >>> digits = make_extractor("digits")
    >>> torch.equal(InRange(digits, 0.0, 1.0)(x).features, digits(2 * x - 1).features)
    True
    """

    inner: Extractor
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.inner.takes_bytes:
            raise InputError(
                f"the features '{self.inner.name}' take values as they are and need no range; leave it out"
            )
        if not self.low < self.high:
            raise InputError(
                f"a range is the values of black and white, the smaller first; got {self.low:g}, {self.high:g}"
            )

    @property
    def name(self) -> str:
        """That of the inner features."""
        return self.inner.name

    @property
    def sha256(self) -> str:
        """That of the inner features."""
        return self.inner.sha256

    @property
    def preprocessing(self) -> str:
        """The range, then the preprocessing of the inner features."""
        return f"black {self.low:g}, white {self.high:g}; {self.inner.preprocessing}"

    @property
    def shape(self) -> tuple[int, ...] | None:
        """That of the inner features."""
        return self.inner.shape

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the inner features."""
        return self.inner.tensors

    def outside(self, x: Tensor) -> float:
        """The share of values that would be clamped by more than a quarter of the range."""
        return self.inner.outside(self._scaled(x))

    def unrounded(self, x: Tensor) -> Tensor:
        """The inner features of the values taken to [-1, 1], without rounding."""
        return self.inner.unrounded(self._scaled(x))

    def compute(self, x: Tensor) -> Features:
        """The inner features, of the values taken to [-1, 1]."""
        scaled = to_uint8(self._scaled(x)).float() / 127.5 - 1
        return self.inner.compute(scaled)

    def _scaled(self, x: Tensor) -> Tensor:
        return 2 * (x.float() - self.low) / (self.high - self.low) - 1
