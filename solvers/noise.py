r"""Noise that belongs to a sample: counter-based normals.

Every normal number is a function of (seed of the sample, stream, counter, position): SplitMix64 (Steele,
Lea & Flood 2014) used as a counter-based generator, then Box-Muller in float32 on the CPU. No generator
state exists, so batch size, order, number of processes and device cannot change the noise of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.errors import InputError, InputTypeError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = (np.uint64(n) for n in (30, 27, 31, 32))

# Streams keep the uses of one seed apart.
PRIOR, BROWNIAN, INDEPENDENT, FORWARD = 1, 2, 3, 4


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, in place; unsigned arithmetic wraps."""
    z ^= z >> _30
    z *= _MIX_1
    z ^= z >> _27
    z *= _MIX_2
    z ^= z >> _31
    return z


def _unsigned(n: int | Tensor) -> NDArray[np.uint64]:
    return n.numpy().astype(np.uint64) if isinstance(n, Tensor) else np.array(n % 2**64, np.uint64)


def as_seeds(seeds: Iterable[int] | Tensor, n: int) -> Tensor:
    """Check and convert one seed per sample to int64.

    Raises:
        ValueError: not n integers.

    >>> as_seeds(range(3), 3)
    tensor([0, 1, 2])
    """
    out = seeds if isinstance(seeds, Tensor) else torch.tensor(list(seeds), device="cpu")
    if out.dtype.is_floating_point or out.dtype == torch.bool or out.shape != (n,):
        raise InputError(
            f"seeds are one integer per sample: expected {n} of them, got shape {tuple(out.shape)} of "
            f"{out.dtype}; pass for example seeds=range({n})"
        )
    return out.to(device="cpu", dtype=torch.int64)


def standard_normal(
    seeds: Iterable[int] | Tensor, shape: Iterable[int], stream: int, counter: int | Tensor = 0
) -> Tensor:
    """Independent N(0, 1) numbers keyed by (seed, stream, counter), float32 on the CPU.

    Args:
        seeds: one integer per sample, (B,).
        shape: shape of one sample.
        stream: use of the noise (``PRIOR``, ``BROWNIAN``, ``INDEPENDENT``, ``FORWARD``, or a number of your own).
        counter: index of the draw in the stream; one integer, one per sample (B,), or several draws (K, 1).

    Returns:
        (B, *shape), or (K, B, *shape). Sample k depends on seeds[k] alone, not on the batch.

    >>> together = standard_normal([5, 6, 7], (4,), stream=1)
    >>> torch.equal(together[1:2], standard_normal([6], (4,), stream=1))
    True
    """
    shape = tuple(shape)
    keys = seeds if isinstance(seeds, Tensor) else torch.tensor(list(seeds), dtype=torch.int64, device="cpu")
    z = _mix(_mix(_unsigned(keys) + _GAMMA) + _unsigned(stream) * _GAMMA)
    z = _mix(z + _unsigned(counter) * _GAMMA)
    size = math.prod(shape)
    half = (size + 1) // 2
    bits = _mix(z[..., None] + np.arange(1, half + 1, dtype=np.uint64) * _GAMMA)
    angle = bits.astype(np.uint32).astype(np.float32)
    angle *= np.float32(2 * math.pi * 2.0**-32)
    # (n + 1/2) / 2^32 for the upper half of the bits: never 0, and 1 at most, after rounding. In place, because the
    # pages of a new array cost as much as its numbers.
    bits >>= _32
    radius = bits.astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    out = np.empty((*z.shape, 2 * half), dtype=np.float32)
    np.multiply(radius, np.cos(angle), out=out[..., :half])
    np.multiply(radius, np.sin(angle, out=angle), out=out[..., half:])
    return torch.from_numpy(out)[..., :size].reshape(*z.shape, *shape)


class Noise(Protocol):
    """Interface of noise for stochastic solvers: N(0, I) in the shape, dtype and device of x."""

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The normalised increment of the driving Brownian motion from the time t to the time s.

        The times are 0-d, or (B, 1, ..., 1) where every sample has its own.
        """
        ...

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        """Noise independent of the path, the k-th of its kind at the time t."""
        ...

    def rows(self, index: Tensor) -> Noise:
        """The noise of a part of the batch."""
        ...


class NoNoise:
    """Noise of a deterministic run: every request is an error.

    >>> NoNoise().increment(torch.zeros(1, 1), torch.ones(()), torch.zeros(()))
    Traceback (most recent call last):
    ...
    solvers.errors.InputTypeError: this solver draws noise, but declares stochastic = False
    """

    def _refuse(self, *_: object, **__: object) -> Tensor:
        raise InputTypeError("this solver draws noise, but declares stochastic = False")

    increment = independent = _refuse

    def rows(self, index: Tensor) -> NoNoise:
        """Return self."""
        return self
