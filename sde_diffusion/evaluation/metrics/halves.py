r"""Precision, recall, density and coverage of a set and of many halves of it, in one pass over the distances.

The standard error of a figure is found from its spread over random halves (``estimate.standard_error``). Each half has
balls of its own around the generated samples: they reach to the k-th nearest neighbour within the half. That neighbour
is among the ``_NEAR`` nearest of the whole set unless fewer than k of these are in the half, which is then computed
afresh. So one matrix of distances serves all halves, a block of rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import halves_of
from sde_diffusion.evaluation.metrics.mmd import block, pair
from sde_diffusion.evaluation.metrics.nearest_neighbours import reach
from solvers.errors import InputError

_NEAR = 48  # nearest neighbours that are kept; of 48 fewer than 5 lie in a half once in 10^9


def neighbours_of_halves(generated: Tensor, real: Tensor, draws: int, seed: int, k: int = 5) -> tuple[Tensor, Tensor]:
    """The four figures of the whole set, (4,), and of its halves, (draws, 4).

    Args:
        generated: features (n, ...).
        real: features (m, ...).
        draws: number of halves.
        seed: their seed, as in ``standard_error``.
        k: the neighbour to which a ball reaches.

    Raises:
        ValueError: other dimensions, too few samples in a set, or values that are not finite.

    >>> y = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> whole, halves = neighbours_of_halves(y, y + 0.1, draws=4, seed=0)
    >>> tuple(whole.shape), tuple(halves.shape)
    ((4,), (4, 4))
    """
    if len(generated) // 2 < k + 1:  # before the warning of few samples
        raise InputError(
            f"halves of {len(generated)} samples have no {k}-th nearest neighbours; take {2 * (k + 1)} or more"
        )
    y, x = pair(generated, real, least=k + 1)
    n = len(y)
    # The whole set is one more "half", in the first row.
    chosen = torch.zeros(draws + 1, n, dtype=torch.bool)
    chosen[0] = True
    for row, half in zip(chosen[1:], halves_of(n, draws, seed), strict=True):
        row[half] = True
    reach_x, reach_y = reach(x, k), _reach_within(y, chosen, k)
    covered, recalled = (torch.zeros(draws + 1, len(x), dtype=torch.bool) for _ in range(2))
    precise, balls = torch.zeros(draws + 1).double(), torch.zeros(draws + 1).double()
    for start in range(0, n, size := block(len(x))):
        rows = slice(start, start + size)
        distance = torch.cdist(y[rows], x)
        inside, member = distance <= reach_x, chosen[:, rows]
        weights = member.double()
        precise += weights @ inside.any(1).double()
        balls += weights @ inside.sum(1).double()
        covered |= (weights @ inside.double()) > 0
        for k_half in range(draws + 1):
            own = member[k_half]
            recalled[k_half] |= (distance[own] <= reach_y[k_half, rows][own, None]).any(0)
    counts = chosen.sum(1).double()
    figures = torch.stack(
        [precise / counts, recalled.double().mean(1), balls / (k * counts), covered.double().mean(1)], 1
    )
    return figures[0], figures[1:]


def _reach_within(y: Tensor, chosen: Tensor, k: int) -> Tensor:
    """The distance of each sample to its k-th nearest neighbour within each chosen part, (parts, n)."""
    n = len(y)
    near = min(_NEAR, n - 1)
    out = torch.empty(len(chosen), n, dtype=y.dtype)
    for start in range(0, n, size := block(n)):
        distance = torch.cdist(y[start : start + size], y)
        distance.diagonal(start).fill_(torch.inf)
        nearest, index = distance.topk(near, dim=1, largest=False)
        for part, member in enumerate(chosen):
            inside = member[index]
            count = inside.cumsum(1)
            found = count[:, -1] >= k
            at = (count >= k).double().argmax(1)
            out[part, start : start + size] = nearest.gather(1, at[:, None])[:, 0]
            for row in (~found & member[start : start + size]).nonzero()[:, 0].tolist():
                out[part, start + row] = distance[row, member].kthvalue(k).values
    return out
