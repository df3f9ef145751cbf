r"""The sliced Wasserstein distance: optimal transport on random lines (Rabin et al. 2011; Bonneel et al. 2015, eq. 8).

    SW^2 = E_theta W_2(theta.x, theta.y)^2,     theta uniform on the sphere.

On a line, W_2^2 is the integral of the squared difference of the quantile functions, which are steps; it is evaluated
exactly, also for sets of other sizes. Unlike the Frechet distance it sees the whole law, and no number of dimensions is
too many for n samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.mmd import pair
from solvers.errors import InputError

_CHUNK = 64


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance, in units of the features.

    Args:
        a: features (n, ...).
        b: features (m, ...).
        projections: number of lines.
        seed: seed of the lines; equal seeds make two figures comparable.

    Raises:
        ValueError: other dimensions, no samples, values that are not finite, or no lines.

    >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(sliced_wasserstein(x[:, :1], x[:, :1] + 2.0), 6)  # in one dimension all lines are one
    2.0
    """
    if projections < 1:
        raise InputError(f"expected 1 projection or more; got {projections}")
    x, y = pair(a, b)
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    lines = lines / lines.norm(dim=0)
    n, m = len(x), len(y)
    # All levels at which one of the quantile functions jumps, as multiples of 1 / (n m): integers are exact.
    levels = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    weights = torch.diff(levels, prepend=levels.new_zeros(1)).double() / (n * m)
    at_x, at_y = (levels - 1) // m, (levels - 1) // n
    total = 0.0
    for part in torch.split(lines, _CHUNK, dim=1):
        gap = (x @ part).sort(dim=0).values[at_x] - (y @ part).sort(dim=0).values[at_y]
        total += float((weights @ gap.square()).sum())
    return (total / projections) ** 0.5
