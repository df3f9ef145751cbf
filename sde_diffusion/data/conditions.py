"""Conditions of samples besides their labels: a vector, an image or tokens for each.

kind      shape of all         what it is
vector    (N, K)               numbers, such as measurements or parameters
image     (N, C, ...)          an array on the grid of the sample, of its size or of another
tokens    (N, n, width)        a sequence, such as the embedding of a text; tokens of NaN are padding
caption   (N, n)               numbers of the words of a text, ``text.to_numbers``; NaN is padding

Bytes of images become c / 127.5 - 1 when a batch is taken, all else is kept as float32 and not scaled: the network
holds mean and deviation of its conditions (``moments``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError, InputTypeError, choose

if TYPE_CHECKING:
    from sde_diffusion.data.dataset import Data

KINDS = ("vector", "image", "tokens", "caption")
_MOST = 2**24  # values that the moments are measured on


@dataclass(frozen=True, eq=False)
class Conditions:
    """One condition for each sample of a data set.

    Args:
        name: name in messages and run files.
        values: (N, ...), float32, or uint8 for the bytes of images.
        kind: "vector" (N, K), "image" (N, C, ...), "tokens" (N, n, width) or "caption" (N, n).
        words: the vocabulary of captions, ``text.words_of``.

    Raises:
        TypeError: values of another dtype.
        ValueError: a kind that does not fit their shape, nothing in them, or values that are not finite.

    >>> given = Conditions("angles", torch.tensor([[0.0], [2.0]]), "vector")
    >>> given.describe()
    'angles: 2 vectors of shape (1,) as conditions'
    """

    name: str
    values: Tensor
    kind: str
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Validate dtype, rank and finiteness."""
        choose(self.kind, dict.fromkeys(KINDS), "kind of condition")
        values = self.values
        if values.dtype not in (torch.float32, torch.uint8) or (values.dtype == torch.uint8 and self.kind != "image"):
            raise InputTypeError(
                f"{self.name}: a {self.kind} condition of {values.dtype}; expected float32, or uint8 for images"
            )
        ranks = {"vector": (2,), "image": (3, 4, 5), "tokens": (3,), "caption": (2,)}[self.kind]
        if values.ndim not in ranks or values.numel() == 0:
            shapes = {"vector": "(N, K)", "image": "(N, C, ...)", "tokens": "(N, tokens, width)"}
            need = {**shapes, "caption": "(N, words)"}[self.kind]
            raise InputError(f"{self.name}: a {self.kind} condition of shape {tuple(values.shape)}; expected {need}")
        if (self.kind == "caption") != (self.words is not None):
            raise InputError(f"{self.name}: captions have a vocabulary, words=, and no other condition has one")
        padded = self.kind in ("tokens", "caption")
        if values.is_floating_point() and not padded and not bool(values.isfinite().all()):
            row = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise InputError(f"{self.name}: the condition of sample {row} is not finite; clean or drop those samples")

    def __len__(self) -> int:
        """Return the number of conditions."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one condition; that of tokens and captions has no number of tokens, which may vary."""
        if self.kind == "caption":
            return ()
        return tuple(self.values.shape[2:] if self.kind == "tokens" else self.values.shape[1:])

    @property
    def setting(self) -> int | list[int] | list[str]:
        """The network's setting of this kind: a length, the shape of an image, or the words of captions.

        >>> Conditions("low", torch.zeros(1, 3, 4, 4), "image").setting
        [3, 4, 4]
        """
        if self.words is not None:
            return list(self.words)
        return list(self.shape) if self.kind == "image" else self.shape[0]

    def batch(self, index: Tensor | Sequence[int] | slice) -> Tensor:
        """Return the conditions at these positions as float32, bytes scaled by c / 127.5 - 1."""
        values = self.values[index]
        return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of kind, shape, type and values; the name does not matter."""
        digest = hashlib.sha256(f"{self.kind} {self.values.dtype} {tuple(self.values.shape)}".encode())
        digest.update(self.values.cpu().numpy().tobytes())
        digest.update(" ".join(self.words or ()).encode())
        return digest.hexdigest()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation: per entry of vectors, per channel (C, 1, ...) of images of numbers.

        Images of bytes have mean 0 and deviation 1, since [-1, 1] is their range. An entry that never changes has
        deviation 1.
        """
        if self.kind == "caption":
            return torch.zeros(()), torch.ones(())
        axes = [0] if self.kind == "vector" else [0, *range(2, self.values.ndim)]
        shape = self.shape if self.kind == "vector" else (self.shape[0], *(1,) * (len(self.shape) - 1))
        if self.values.dtype == torch.uint8 or self.kind == "tokens":
            return torch.zeros(shape), torch.ones(shape)
        count = min(len(self), max(1, _MOST // self.values[0].numel()))
        rows = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).long()
        some = self.values[rows].double()
        mean, std = some.mean(axes), some.std(axes, correction=0)
        std = torch.where(std > 1e-12 * mean.abs(), std, 1.0)
        return mean.float().reshape(shape), std.float().reshape(shape)

    def describe(self) -> str:
        """Return a readable line."""
        if self.words is not None:
            return f"{self.name}: {len(self)} captions of {len(self.words)} words as conditions"
        what = {"vector": "vectors", "image": "images", "tokens": "token sequences"}[self.kind]
        return f"{self.name}: {len(self)} {what} of shape {self.shape} as conditions"


def own_images(data: Data) -> Conditions:
    """Return the images of a set as the conditions of themselves, for a diffusion autoencoder.

    Raises:
        ValueError: data that are no images, signals or volumes.

    >>> from sde_diffusion.data import load_data
    >>> own_images(load_data("digits")).describe()
    'digits: 1500 images of shape (1, 8, 8) as conditions'
    """
    if len(data.shape) < 2:
        raise InputError(f"a code (--code) is made of images, and the samples of {data.name} have shape {data.shape}")
    return Conditions(data.name, data.x, "image")


def as_conditions(values: Any, sample: Sequence[int], name: str = "condition", kind: str | None = None) -> Conditions:
    """Return an array as the conditions of samples.

    Args:
        values: (N, ...) of real numbers; (N,) are vectors of one entry.
        sample: shape of one sample. An array of as many axes is an image; so is (N, H, W) of bytes for images.
        name: for messages.
        kind: one of ``KINDS``; by the number of axes when None.

    Raises:
        TypeError: values that are not real numbers.
        ValueError: a shape that no kind has.

    >>> as_conditions(np.zeros((5, 3)), (1, 8, 8)).kind, as_conditions(np.zeros((5, 1, 4, 4)), (1, 8, 8)).kind
    ('vector', 'image')
    >>> as_conditions(np.zeros((5, 7, 16)), (1, 8, 8)).kind
    'tokens'
    """
    from sde_diffusion.data.dataset import channels_first, in_float32, real

    if isinstance(values, Conditions):
        return values
    array = real(values, f"{name}: the conditions")
    if array.ndim == 1:
        array = array[:, None]
    axes = len(sample) + 1
    if array.dtype == np.uint8 and array.ndim == 3 and axes == 4:
        array = array[:, None]
    if kind is None:
        if array.ndim not in (2, 3, axes):
            raise InputError(
                f"{name}: conditions of shape {array.shape} for samples of shape {tuple(sample)}; expected vectors "
                f"(N, K), tokens (N, n, width), or images with {axes} axes"
            )
        kind = "vector" if array.ndim == 2 else "image" if array.ndim == axes else "tokens"
    if kind == "image" and array.ndim == 4:
        array = channels_first(array, name)
    of_bytes = array.dtype == np.uint8 and kind == "image"
    padded = kind == "tokens" and np.isnan(array).any() if array.dtype.kind == "f" else False
    return Conditions(
        name, torch.tensor(array if of_bytes else array.astype(np.float32) if padded else in_float32(array, name)), kind
    )
