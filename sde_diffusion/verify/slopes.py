r"""Fitted orders: the slope of log error on log step.

A method of order p has error C h^p (1 + O(h)) until rounding takes over. The slope is fitted to
the three finest grids whose error is still above the floor that rounding and the reference set;
coarser grids are outside the asymptotic range and are left out, finer ones measure the floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sde_diffusion.verify.result import Check

TOLERANCE = 0.15


class SlopeFit(NamedTuple):
    """A fitted slope; infinite for errors that are nothing but rounding.

    Attributes:
        slope: the order measured.
        error: the error on the finest grid.
        errors: on every grid, coarse to fine.
    """

    slope: float
    error: float
    errors: tuple[float, ...]


def fit(steps: Sequence[float], errors: Sequence[float], floor: float, points: int = 3) -> SlopeFit:
    """The order that a run of errors shows.

    Args:
        steps: numbers of steps, increasing.
        errors: one for each, >= 0.
        floor: errors below it are ignored.
        points: number of the finest grids above the floor that are used.

    Returns:
        The slope on the three finest grids above the floor: infinite if there are fewer than two
        of these, NaN if an error is not finite.

    >>> round(fit([10, 20, 40, 80], [1e-2, 1e-4, 1e-6, 1e-15], floor=1e-12).slope, 2)
    6.64
    """
    if not all(math.isfinite(e) for e in errors):
        return SlopeFit(math.nan, math.nan, tuple(errors))
    used = [(n, e) for n, e in zip(steps, errors, strict=True) if e > floor][-points:]
    if len(used) < 2:
        return SlopeFit(math.inf, errors[-1], tuple(errors))
    n, e = np.log(np.array(used).T)
    slope = -float(np.polyfit(n, e, 1)[0])
    return SlopeFit(slope, errors[-1], tuple(errors))


def agrees(fits: Mapping[str, SlopeFit], order: float) -> bool:
    """Whether the worst of several fits is the declared order, within 0.15.

    A method may do better than it declares on one target (it may even be exact there), never
    worse on any.

    >>> gaussian, mixture = SlopeFit(math.inf, 0.0, ()), SlopeFit(2.05, 1e-4, ())
    >>> agrees({"gaussian": gaussian, "mixture": mixture}, 2), agrees({"mixture": mixture}, 1)
    (True, False)
    """
    return abs(worst(fits) - order) <= TOLERANCE


def worst(fits: Mapping[str, SlopeFit]) -> float:
    """The lowest slope; NaN if one is."""
    slopes = [f.slope for f in fits.values()]
    return math.nan if any(math.isnan(s) for s in slopes) else min(slopes)


def described(fits: Mapping[str, SlopeFit]) -> str:
    """The slopes in words.

    >>> described({"gaussian": SlopeFit(math.inf, 0.0, ()), "mixture": SlopeFit(1.987, 3e-5, ())})
    'gaussian exact, mixture 1.99'
    """
    return ", ".join(f"{name} {'exact' if math.isinf(f.slope) else f'{f.slope:.2f}'}" for name, f in fits.items())


def order_check(name: str, what: str, declared: float, fits: Mapping[str, SlopeFit], steps: Sequence[int]) -> Check:
    """The check that fits agree with a declared order."""
    return Check(
        name,
        agrees(fits, declared),
        f"{what} {declared:g} +- {TOLERANCE}",
        described(fits),
        {
            "declared": declared,
            "fitted": worst(fits),
            "steps": steps,
            **{f"errors_{target}": f.errors for target, f in fits.items()},
        },
    )
