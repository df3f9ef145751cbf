"""A feature extractor: what turns samples into the vectors that metrics compare.

Every extractor sees the same pixels: images are rounded to bytes and taken back to [-1, 1] first, because real images
are bytes and a metric must not tell the two apart by that. The name, the preprocessing and a hash of everything that
fixes the features travel with reference statistics, so that figures of two extractors are never compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.data.pixels import to_uint8
from solvers.errors import InputError

BYTES = "images rounded to bytes, then x / 127.5 - 1"


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
    """A named function of samples. Subclasses are final and give ``compute``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """A hash of all that fixes the features beside the preprocessing: weights, or a version."""

    @property
    def preprocessing(self) -> str:
        """What happens to a sample before it."""
        return BYTES

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a sample that it takes; None for any."""
        return None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What a reference file must hold to make the extractor again; empty where the name is enough."""
        return {}

    @abstractmethod
    def compute(self, x: Tensor) -> Features:
        """Features of samples (B, ...) that were checked and rounded."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Features:
        """Features of samples (B, ...), images in [-1, 1].

        Raises:
            ValueError: samples of another shape, or values that are not finite.
        """
        shape = tuple(x.shape[1:])
        if self.shape is not None and shape != self.shape:
            raise InputError(
                f"samples of shape {shape}, but the features '{self.name}' are of samples of shape {self.shape}; "
                "images are not resized silently: bring them to that size, or use other features"
            )
        bad = ~x.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise InputError(
                f"{int(bad.sum())} of {len(x)} samples are not finite; the first is {int(bad.nonzero()[0])}"
            )
        x = to_uint8(x).float() / 127.5 - 1 if is_image(shape) else x.float()
        return self.compute(x)
