r"""Bits per dimension of discrete data, from the density of its uniformly dequantised values.

Levels y = 0 .. bins - 1 become x = (y + u + shift) w with u ~ U[0, 1)^d, where w is the width of one level in units of
x. By Jensen's inequality the probability of y under a density p obeys (Theis et al. 2016, eq. 5)

    log2 P(y) >= E_u log2 [ p(x) w^d ],

so -(nats / d + log w) / log 2 is, on average over u, an upper bound of the bits per dimension. It is that of the
levels and does not depend on the units of x: scaling x by c adds -d log c to the nats and log c to log w.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.noise import as_seeds, standard_normal

# A separate stream: dequantisation noise is independent of the probes of the same seed.
_DEQUANTISATION = 12


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension and what they refer to.

    Attributes:
        bits: (B,) float64.
        bins: levels of one value.
        scale: width of all levels together, in units of x.
        dequantisation: method of dequantisation.
    """

    bits: Tensor
    bins: int
    scale: float
    dequantisation: str = "uniform"


def level_range(bins: int) -> float:
    """Width of all levels together when the first is -1 and the last is 1, as in data sets of images.

    >>> level_range(256)  # levels lie 2/255 apart
    2.007843137254902
    """
    return 2 * bins / (bins - 1)


def dequantise(levels: Tensor, bins: int = 256, *, seeds: Iterable[int] | Tensor | None = None) -> Tensor:
    """Levels with uniform noise, x = 2 (y + u - 1/2) / (bins - 1) - 1: each level is the middle of its range.

    Args:
        levels: whole numbers 0 to bins - 1, (B, ...).
        bins: number of levels.
        seeds: one integer per sample, 0 to B - 1 by default.

    Raises:
        ValueError: values that are no such levels.

    >>> x = dequantise(torch.tensor([[0, 255]]))
    >>> ((x - torch.tensor([[-1.0, 1.0]])).abs() <= 1 / 255).tolist()
    [[True, True]]
    """
    _check_bins(bins)
    y = levels.double()
    if levels.numel() and not bool(((y >= 0) & (y < bins) & (y == y.round())).all()):
        raise InputError(f"levels are whole numbers from 0 to {bins - 1}; got {y.min():.6g} to {y.max():.6g}")
    seeds = as_seeds(range(len(levels)) if seeds is None else seeds, len(levels))
    # The distribution function of a normal number is uniform.
    u = torch.special.ndtr(standard_normal(seeds, levels.shape[1:], _DEQUANTISATION).double())
    return 2 * (y + u.to(y.device) - 0.5) / (bins - 1) - 1


def bits_per_dim(nats: Any, bins: int = 256, scale: float | None = None, *, dim: int | None = None) -> BitsPerDim:
    """-(nats / d + log(scale / bins)) / log 2.

    Args:
        nats: a ``LogLikelihood`` or a bound, of dequantised data; or its nats (B,), with dim.
        bins: levels of one value.
        scale: width of all levels together in units of x; ``level_range(bins)`` if levels run from -1 to 1.
        dim: number of values in a sample, if nats does not contain it.

    Raises:
        ValueError: bins below 2, a scale that is not positive, or dim missing.

    Data uniform over all levels, here on [0, 10), has 8 bits:

    >>> bits_per_dim(torch.tensor([3 * -math.log(10.0)]), bins=256, scale=10.0, dim=3).bits.round(decimals=6)
    tensor([8.], dtype=torch.float64)
    """
    _check_bins(bins)
    scale = level_range(bins) if scale is None else scale
    if not 0 < scale < math.inf:
        raise InputError(f"scale is the width of all levels together in units of x and must be positive; got {scale}")
    dim = getattr(nats, "dim", None) if dim is None and not isinstance(nats, Tensor) else dim
    if dim is None or dim < 1:
        raise InputError("say how many values a sample has: bits_per_dim(nats, bins, scale, dim=784)")
    values = torch.as_tensor(getattr(nats, "nats", nats)).double()
    return BitsPerDim(-(values / dim + math.log(scale / bins)) / math.log(2), bins, scale)


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise InputError(f"bins is the number of levels of one value, at least 2; got {bins}")
