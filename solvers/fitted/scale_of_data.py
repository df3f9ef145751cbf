r"""The scale of the data, seen in the first evaluations of a sample.

Gaussian data of standard deviation c, whatever their mean, have at rho = sigma / alpha, with z = x / alpha,

    r = rms((z - D) / rho) / rms(eps) = rho^2 / (c^2 + rho^2),        c = rho sqrt(1 / r - 1),
    d = rms(D - D_0) = c^2 / sqrt(c^2 + rho^2),                       c^2 = (d^2 + d sqrt(d^2 + 4 rho^2)) / 2,

where eps is the noise at the start and D_0 the first denoised sample. r shows data that are wide for the noise level
of an evaluation, and d those that are wide for data of scale 1. The larger c counts, where r is below 0.85 or d above
2, and c above 2.5: data in [-1, 1] or standardised data show neither. Means over the entries of each channel (of
a vector, over all) are taken off eps and the size of D, so that neither has to do with the zero of the data; of fewer
than 16 entries this leaves too little of eps, and d alone counts. Pure noise shows nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solvers.solver import sample_rms

_SHARE = 0.85  # r of a sample that may be wide
_SIZE = 2.0  # d of a sample that may be
_WIDE = 2.5  # c of a sample that is
_UNIT = 1.5  # times c: the scale, since images of scale 1 in [-1, 1] have standard deviations of about 1/2
_FEW = 0.25  # rms(eps) below which r says little
_ENTRIES = 16  # number of entries below which it says little at the start
_LARGEST = 1e6


def noise_size(x: Tensor, sigma: float) -> Tensor:
    """The rms(eps) of each sample, (B,) float64, from x at the start and its sigma there.

    >>> noise_size(torch.tensor([[2.0, -2.0]]), 4.0).round(decimals=4)  # one of two entries is the mean
    tensor([0.7071], dtype=torch.float64)
    """
    return _free(x) * sample_rms(_around(x)) / sigma


def scales_of(x: Tensor, value: tuple[Tensor, Tensor], noise: Tensor, now: tuple[float, float]) -> Tensor:
    """The scale of the data that each sample shows, (B,) float64 on the CPU; 0 where it shows none above 1.

    Args:
        x: (B, ...) at a noise level.
        value: the denoised x, and that at the start.
        noise: ``noise_size`` of the start.
        now: alpha and sigma of the noise level.

    Returns:
        Powers of sqrt(2), so that samples share their plans.

    >>> x = torch.tensor([[4.0, -4.0]]).repeat(1, 8)
    >>> scales_of(x, (0.9 * x, 0.9 * x), noise_size(x, 4.0), (1.0, 4.0))
    tensor([16.], dtype=torch.float64)
    >>> scales_of(x, (0 * x, 0 * x), noise_size(x, 4.0), (1.0, 4.0))
    tensor([0.], dtype=torch.float64)
    """
    alpha, sigma = now
    able = noise > (_FEW if _entries(x) >= _ENTRIES else math.inf)
    residual = torch.where(able, sample_rms(x - alpha * value[0]) / (sigma * noise), 1.0)
    size = torch.minimum(_free(x) * sample_rms(_around(value[0])), sample_rms(value[0] - value[1]))
    size, residual = torch.stack([size, residual]).to("cpu")
    if not bool(((size > _SIZE) | (residual < _SHARE)).any()):
        return torch.zeros_like(size)
    rho = sigma / alpha if alpha > 0 else 0.0  # nothing is seen in pure noise
    shrunk = torch.where(residual < _SHARE, rho * (1 / residual - 1).clamp_min(0).sqrt(), 0.0)
    moved = torch.where(size > _SIZE, ((size**2 + size * torch.sqrt(size**2 + 4 * rho**2)) / 2).sqrt(), 0.0)
    scale = torch.maximum(shrunk, moved).clamp_max(_LARGEST)
    # False where it is not a number.
    return torch.where(scale > _WIDE, 2 ** (2 * torch.log2(_UNIT * scale)).round().div(2), 0.0)


def _entries(x: Tensor) -> int:
    """Number of entries that share a mean."""
    return x[0].numel() if x.ndim == 2 else x[0, 0].numel()


def _free(x: Tensor) -> float:
    """Root of the entries over the degrees of freedom that are left once a mean is taken off."""
    entries = _entries(x)
    return math.sqrt(entries / max(entries - 1, 1))


def _around(x: Tensor) -> Tensor:
    """X without the mean of each channel; of vectors, without that of the entries."""
    return x - x.mean(tuple(range(2, x.ndim)) or 1, keepdim=True)
