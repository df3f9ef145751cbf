r"""Precision, recall, density and coverage: do the balls of one set around its samples hold the other's?

The ball of a sample reaches to its k-th nearest neighbour in its own set. With real samples x_i, generated y_j,

    precision = share of y in some ball of x,         recall   = share of x in some ball of y
                                                          (Kynkaanniemi et al. 2019, eq. 1-2),
    density   = balls of x around y_j, mean / k,      coverage = share of balls of x with some y
                                                          (Naeem et al. 2020, eq. 6 and 9).

Precision and density measure quality, recall and coverage diversity. For equal laws and many samples density is 1, and
coverage 1 - (1/2)^k or so for n = m; precision and recall stay below 1. They grow with n: compare only equal n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.mmd import block, pair
from solvers.errors import InputError


class Neighbours(NamedTuple):
    """Precision, recall, density and coverage (``neighbours``); all but density lie in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(generated: Tensor, real: Tensor, k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage of generated samples.

    Args:
        generated: features (m, ...).
        real: features (n, ...).
        k: the neighbour to which a ball reaches.

    Raises:
        ValueError: other dimensions, k or fewer samples in a set, or values that are not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> neighbours(torch.tensor([[0.5], [9.0]]), x, k=1)
    Neighbours(precision=0.5, recall=1.0, density=1.0, coverage=0.6666666666666666)
    """
    if k < 1:
        raise InputError(f"k is the number of a neighbour, from 1 up; got {k}")
    y, x = pair(generated, real, least=k + 1)
    reach_x, reach_y = reach(x, k), reach(y, k)
    recalled, covered = (torch.zeros(len(x), dtype=torch.bool) for _ in range(2))
    precise, balls = 0, 0
    for start in range(0, len(y), size := block(len(x))):
        distance = torch.cdist(y[start : start + size], x)
        inside = distance <= reach_x
        precise += int(inside.any(1).sum())
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distance <= reach_y[start : start + size, None]).any(0)
    return Neighbours(
        precise / len(y), float(recalled.double().mean()), balls / (k * len(y)), float(covered.double().mean())
    )


def reach(x: Tensor, k: int) -> Tensor:
    """The distance of every sample to its k-th nearest neighbour, (n,).

    >>> reach(torch.tensor([[0.0], [1.0], [3.0]]), 1).tolist()
    [1.0, 1.0, 2.0]
    """
    out = torch.empty(len(x), dtype=x.dtype)
    for start in range(0, len(x), size := block(len(x))):
        distance = torch.cdist(x[start : start + size], x)
        distance.diagonal(start).fill_(torch.inf)
        # Several times faster than kthvalue.
        out[start : start + size] = distance.topk(k, largest=False, sorted=False).values.amax(1)
    return out
