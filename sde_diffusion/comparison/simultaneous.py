r"""Simultaneous intervals against the best of several solvers, the choice of the best included.

The errors e_ik of K solvers on the same samples i = 1, ..., n have the means m_k, the smallest at b. The interval
of solver k is

    d_k +- c s_k,        d_k = mean_i (e_ik - e_ib),     s_k = std_i (e_ik - e_ib) / sqrt(n),

multiple comparisons with the best (Hsu 1996, ch. 4). Were all solvers equal, b would be the one with the most luck, and
the largest of K - 1 ratios d_k / s_k is far above 1.96. So c is the 95 % quantile of

    max over k of d*_k / s*_k,        b* chosen anew in every draw,

over draws that assign the centred errors e_ik - m_k of every sample to the solvers in random order (a
studentised permutation test of the largest t; Romano & Wolf 2005; Chung & Romano 2013). Solvers of one law are
exchangeable on every sample, so the level is right from few samples up, whatever the law, and however much harder one
sample is than another for all. A bootstrap with replacement calls some of 12 equal log-normal solvers on 64 samples
different in 0 % of comparisons. No method can correct a mean that depends on events rarer than one sample in n: of
two solvers with equal means, one log-normal and one normal, 64 samples call one better in 9 % of comparisons, and 16
samples in 15 %.

Several NFE are one family of comparisons: the largest is taken over all of them.

``python -m benchmarks.coverage`` measures the level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from solvers.errors import InputError

Array = NDArray[np.float64]
_NUMBERS = 2**25  # at most so many in the draws of one group
_DEALS = 512
_SMALL = 16


def studentised(errors: Array) -> tuple[NDArray[np.intp], Array, Array]:
    """The best, the mean difference of each solver from it, and its standard error.

    Args:
        errors: (..., n, K), of n samples and K solvers.

    Returns:
        Numbers of the best (...,), differences (..., K) >= 0 and standard errors (..., K).

    >>> best, d, s = studentised(np.array([[1.0, 2.0], [1.0, 4.0]]))
    >>> int(best), d.tolist(), s.tolist()
    (0, [0.0, 2.0], [0.0, 1.0])
    """
    best = errors.mean(-2).argmin(-1)
    gap = errors - np.take_along_axis(errors, best[..., None, None], -1)
    n = errors.shape[-2]
    mean = gap.mean(-2)
    gap -= mean[..., None, :]
    variance = np.einsum("...nk,...nk->...k", gap, gap) / (n * (n - 1))
    return best, mean, np.sqrt(variance)


def _largest(d: Array, s: Array) -> Array:
    """max_k d_k / s_k, (...,): 0 where nothing differs, infinite where a difference has no spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(d > 0, d / s, 0.0).max(-1))


def _dealt(errors: Array, draws: int) -> Array:
    """The largest ratio of every deal, (draws,)."""
    n, solvers = errors.shape
    # Groups of one size are dealt alike: what a noise has in common at several NFE stays common.
    rng = np.random.default_rng(0)
    centred = errors - errors.mean(0)
    if solvers == 2:  # a deal is a sign of the difference
        gap = centred[:, 0] - centred[:, 1]
        d = np.abs((rng.integers(0, 2, (draws, n)) * 2 - 1) @ gap) / n
        variance = ((gap @ gap) / n - d**2) / (n - 1)
        return _largest(d[:, None], np.sqrt(variance.clip(0))[:, None])
    deals = np.stack([rng.permutation(solvers) for _ in range(_DEALS)])
    dealt = centred[:, deals].reshape(n * _DEALS, solvers)  # every deal of every sample
    rows = np.arange(n) * _DEALS
    part = max(1, _NUMBERS // 64 // errors.size)
    found = []
    for first in range(0, draws, part):
        kinds = rng.integers(0, _DEALS, (min(part, draws - first), n))
        found.append(_largest(*studentised(dealt.take(rows + kinds, 0))[1:]))
    return np.concatenate(found)


def critical_value(groups: Sequence[Array], *, level: float = 0.95, draws: int = 2000) -> float:
    """The c of intervals that hold together with probability ``level``.

    Below 16 samples it is at least the quantile of t, since so few samples allow too few assignments.

    Args:
        groups: errors (n, K) of every NFE, each with its own best.
        level: level of all intervals together.
        draws: random deals; fewer where n K is large, 500 or more.

    Raises:
        InputError: no group, or fewer than 2 samples.

    >>> rng = np.random.default_rng(0)
    >>> 1.8 < critical_value([rng.standard_normal((64, 2))]) < 2.2 < critical_value([rng.standard_normal((64, 6))])
    True
    """
    if not groups or min(len(g) for g in groups) < 2:
        raise InputError(f"an interval needs at least 2 samples; got {[len(g) for g in groups]}")
    draws = max(500, min(draws, _NUMBERS // max(g.size for g in groups)))
    largest = np.zeros(draws)
    for errors in groups:
        if errors.shape[1] > 1:
            largest = np.maximum(largest, _dealt(errors, draws))
    n = min(len(g) for g in groups)
    found = float(np.quantile(largest, level, method="higher"))
    return max(found, float(stdtrit(n - 1, (1 + level) / 2))) if n < _SMALL else found


def interval(difference: Array, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of one difference that was not chosen after the fact.

    Args:
        difference: (n,), one for every noise.
        level: level of the interval.

    Raises:
        InputError: fewer than 2 samples.

    >>> low, high = interval(np.array([1.0, 2.0, 3.0] * 30))
    >>> 1.8 < low < 2 < high < 2.2
    True
    """
    pairs = np.stack([difference, np.zeros_like(difference)], 1)
    c = critical_value([pairs], level=level)
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / len(difference) ** 0.5
    return mean - c * error, mean + c * error


def against_others(own: Array, others: Array, *, level: float = 0.95, draws: int = 500) -> tuple[float, float]:
    """The interval of (the mean of one solver that was named before - the smallest mean of several others).

    Both ends hold whichever of the others is the best one: with d_p and s_p against each,

        max_p (d_p - c s_p)   to   max_p (d_p + t s_p),

    c the quantile of the largest ratio over all others, t that of one.

    Args:
        own: (n,), the solver's errors.
        others: (n, P), of the others on the same samples.
        level: level of the interval.
        draws: random deals.

    Raises:
        InputError: fewer than 2 samples, no other, or another number of samples.

    >>> rng = np.random.default_rng(0)
    >>> low, high = against_others(rng.random(64), rng.random((64, 50)))  # the best of 50 equal ones has had luck
    >>> low < 0 < high
    True
    """
    if len(own) < 2 or others.shape[:1] != own.shape or others.shape[1] < 1:
        raise InputError(f"expected errors (n,) and (n, P) with n >= 2, P >= 1; got {own.shape} and {others.shape}")
    n = len(own)
    rng = np.random.default_rng(0)
    everything = np.concatenate([own[:, None], others], 1)
    centred = everything - everything.mean(0)
    largest = []
    for _ in range(draws):
        dealt = rng.permuted(centred, axis=1)
        largest.append((_ratios(dealt[:, 0], dealt[:, 1:])).max())
    tail = (1 - level) / 2
    c = float(np.quantile(np.array(largest), 1 - tail))
    t = max(float(stdtrit(n - 1, 1 - tail)), 0.0)
    gap = own[:, None] - others
    d, s = gap.mean(0), gap.std(0, ddof=1) / n**0.5
    return float((d - c * s).max()), float((d + t * s).max())


def _ratios(own: Array, others: Array) -> Array:
    gap = own[:, None] - others
    d, s = gap.mean(0), gap.std(0, ddof=1) / len(own) ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(s > 0, d / s, 0.0))
