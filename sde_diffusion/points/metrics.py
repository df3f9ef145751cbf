r"""Distances between clouds, and scores of generated clouds against reference clouds.

The Chamfer distance of clouds X and Y is

    CD(X, Y) = mean_x min_y ||x - y||^2 + mean_y min_x ||x - y||^2.

It does not depend on the order of the points and is 0 for equal sets. With generated clouds g and reference clouds r
(Achlioptas et al. 2018; Yang et al. 2019, section 5),

    matching distance  mean over r of min_g CD(g, r)
    coverage           share of the r that are the nearest reference of some g
    1-NN accuracy      leave-one-out accuracy of the nearest-neighbour classifier of "generated or reference" on both
                       sets together: 1/2 for equal laws, 1 where the sets lie apart, below 1/2 for copies

Coverage and accuracy depend on the number of clouds, so a part of the data against another of the same size gives the
value that a perfect model has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.errors import InputError

_MOST = 2**24  # distances computed together


@dataclass(frozen=True)
class CloudScores:
    """Scores of generated clouds.

    Attributes:
        matching: mean Chamfer distance of a reference cloud to its nearest generated one.
        coverage: share of reference clouds that are nearest to some generated cloud.
        accuracy: leave-one-out 1-NN accuracy; 1/2 for equal laws.
        error: binomial standard error of the accuracy.
    """

    matching: float
    coverage: float
    accuracy: float
    error: float


def checked_clouds(clouds: Tensor, name: str) -> Tensor:
    """Return clouds after a check of their shape.

    Raises:
        ValueError: not (B, C, N), or values that are not finite.
    """
    if clouds.ndim != 3 or clouds.numel() == 0 or not clouds.is_floating_point():
        raise InputError(
            f"{name} have shape {tuple(clouds.shape)} of {clouds.dtype}; expected floating point clouds (B, C, N), "
            "coordinates first"
        )
    if clouds.shape[1] > 16 >= clouds.shape[2]:
        raise InputError(
            f"{name} have shape {tuple(clouds.shape)}, {clouds.shape[1]} coordinates of {clouds.shape[2]} points; "
            "clouds have their coordinates first: transpose(1, 2)"
        )
    if not bool(clouds.isfinite().all()):
        raise InputError(f"{name} have values that are not finite; drop those clouds")
    return clouds


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Return the Chamfer distance of every pair, (A, B).

    Args:
        a: clouds (A, C, N).
        b: clouds (B, C, M); M may differ from N.

    Raises:
        ValueError: other shapes, or values that are not finite.

    >>> chamfer(torch.zeros(1, 3, 5), torch.tensor([[[2.0], [0.0], [0.0]]]))  # 4 one way and 4 the other
    tensor([[8.]])
    """
    a, b = checked_clouds(a, "clouds"), checked_clouds(b, "clouds")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"clouds of {a.shape[1]} and of {b.shape[1]} coordinates have no distance")
    out = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
    size = max(1, _MOST // (a.shape[2] * b.shape[2]))
    other = b.transpose(1, 2)
    for k, cloud in enumerate(a.transpose(1, 2)):
        for first in range(0, len(b), size):
            part = other[first : first + size]
            squared = torch.cdist(cloud.expand(len(part), -1, -1), part).square()
            out[k, first : first + size] = squared.amin(2).mean(1) + squared.amin(1).mean(1)
    return out


def score_clouds(generated: Tensor, reference: Tensor) -> CloudScores:
    """Return matching distance, coverage and 1-NN accuracy of generated clouds by the Chamfer distance.

    Args:
        generated: (n, C, N).
        reference: (n, C, M), as many clouds.

    Raises:
        ValueError: other shapes, fewer than two clouds, or different numbers of clouds.

    >>> g = torch.Generator().manual_seed(0)
    >>> near, far = torch.randn(2, 8, 3, 16, generator=g)
    >>> score_clouds(near, far + 9.0).accuracy, score_clouds(near, near).coverage
    (1.0, 1.0)
    """
    if len(generated) != len(reference) or len(generated) < 2:
        raise InputError(
            f"{len(generated)} generated and {len(reference)} reference clouds; the scores compare equal numbers, "
            "two or more"
        )
    across = chamfer(generated, reference)
    own = [chamfer(clouds, clouds).fill_diagonal_(torch.inf) for clouds in (generated, reference)]
    # A tie, such as an exact copy, is a cloud of the other set.
    right = (own[0].amin(1) < across.amin(1)).sum() + (own[1].amin(1) < across.amin(0)).sum()
    count = 2 * len(generated)
    p = int(right) / count
    covered = len(set(across.argmin(1).tolist())) / len(reference)
    return CloudScores(float(across.amin(0).mean()), covered, p, math.sqrt(p * (1 - p) / count))
