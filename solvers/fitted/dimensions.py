"""Which samples have so many dimensions that ``pf-ode`` runs them with settings of their own.

Samples of more than 448 entries do, from every start: the tables for a few dimensions were fitted to up to 256
(networks), the others to 500 to 3,072. From a low start the settings of many dimensions are better from fewer entries
on, for some numbers of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from solvers.fitted.low_start import LOW_START, LOWEST_START, MIDDLE_START

_MANY = 448
# By the start below which they hold: from so many entries on, and with these numbers of steps.
_FROM_LOW_STARTS = {
    LOWEST_START: ((12, range(5, 10)),),
    LOW_START: ((32, (6, 7, 11, 12, 13)), (90, range(6, 14))),
    MIDDLE_START: ((12, (4,)), (90, (6, 7, 8)), (150, range(4, 16))),
}


def is_large(shape: Sequence[int], start: float = math.inf, steps: int = 0) -> bool:
    """Whether samples of a shape have the settings of many dimensions, with a number of steps from rho = start.

    >>> is_large((1, 16, 16)), is_large((1, 28, 28)), is_large((1, 16, 16), start=14.6, steps=8)
    (False, True, True)
    """
    entries = math.prod(shape)
    rules = next((rules for below, rules in _FROM_LOW_STARTS.items() if start < below), ())
    return entries > _MANY or any(entries >= least and steps in numbers for least, numbers in rules)
