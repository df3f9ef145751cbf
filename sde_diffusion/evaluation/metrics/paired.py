r"""The difference of two Frechet distances of paired samples, such as those of two solvers from the same initial noise.

Chance moves both sets alike, and most of it cancels in the difference. Every random half takes the same rows of both
sets, so that the spread of the difference over halves (``estimate.standard_error``) has their covariance in it:

    Var(d_a^2 - d_b^2) = Var d_a^2 + Var d_b^2 - 2 Cov(d_a^2, d_b^2).

Two intervals that overlap can therefore belong to distances that differ beyond doubt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import Estimate, halves_of, spread_of_halves
from sde_diffusion.evaluation.metrics.frechet import frechet_distance, unbiased_frechet_distance
from sde_diffusion.evaluation.metrics.moments import Moments
from solvers.errors import InputError


def frechet_of_halves(x: Tensor, reference: Moments, draws: int, seed: int) -> Tensor:
    """The Frechet distances of random halves of a set to a reference, float64 (draws,).

    Sets of one size have the same rows in the same halves.

    >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> a, b = (frechet_of_halves(x + shift, Moments.of(x), draws=3, seed=0) for shift in (0.0, 1.0))
    >>> bool((a < b).all())
    True
    """
    halves = halves_of(len(x), draws, seed)
    found = [frechet_distance(x[half], reference, allow_few=True) for half in halves]
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def frechet_difference(a: Tensor, b: Tensor, reference: Moments, *, draws: int = 100, seed: int = 0) -> Estimate:
    """The squared Frechet distance of one set of samples to a reference, less that of another, paired set.

    Args:
        a: features (n, ...); row k belongs to the same initial noise as row k of b.
        b: features (n, ...).
        reference: the reference, taken as exact.
        draws: number of halves.
        seed: their seed.

    Returns:
        The difference, negative where a is nearer, in squared units of the features, and its standard error. The bias
        of the number of samples is subtracted from both distances.

    Raises:
        InputError: sets of different sizes, or as ``frechet_distance``.

    >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    >>> low, high = frechet_difference(1.1 * x, x + 0.01, Moments.of(x)).interval
    >>> 0 < low < high < 0.1
    True
    """
    if len(a) != len(b):
        raise InputError(f"paired samples are as many in both sets; got {len(a)} and {len(b)}")
    distances = [unbiased_frechet_distance(x, reference).value for x in (a, b)]
    halves = [frechet_of_halves(x, reference, draws, seed) for x in (a, b)]
    return Estimate(distances[0] - distances[1], float(spread_of_halves(halves[0] - halves[1], len(a))))
