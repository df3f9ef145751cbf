r"""The exponential engine of ``pf-ode`` where the path starts at a low noise level: its levels and its order.

The levels are those of Karras et al. 2022, eq. 5, or equal steps of log rho, their limit for a large exponent. The
order is chosen for each sample from 2 or 4 values up (``solvers.exponential.variable_order``), with any number of
steps. In many dimensions, and in a few from some starts with some numbers of steps, the last values are extrapolated to
zero noise (``solvers.exponential.zero_noise``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solvers.grids import time_at
from solvers.problem import Path

LOW_START = 10.0  # the rho of the start below which there are levels for every number of steps
LOWEST_START = 4.5  # the same for a few dimensions, below which the order is chosen from 2 values up
MIDDLE_START = 20.0  # the rho of the start below which some numbers of steps have settings of their own
LOW_START_OF_MANY = 40.0  # the rho of the start below which many dimensions have levels of their own
SOME_STEPS, ANY_STEPS = 12, 15  # steps up to which the order is chosen from 2 values
_EXTRAPOLATED_STEPS = range(14, 16)  # of a few dimensions from a start between LOWEST_START and LOW_START
# Steps of a few dimensions that are equal steps of log rho, from a start between these and up to MIDDLE_START.
_EQUAL_STEPS, _EQUAL_STEPS_ABOVE = range(10, 14), range(11, 13)
_LOW_STEPS = 16  # steps of many dimensions from a start below LOW_START beyond which the last level is lower
_EVEN_STEPS = 8  # steps of many dimensions from a higher start up to which these are equal steps of log rho


def has_equal_steps(steps: int, start: float) -> bool:
    """Whether a few dimensions have equal steps of log rho."""
    if not LOWEST_START <= start < MIDDLE_START:
        return False
    return steps in (_EQUAL_STEPS if start < LOW_START else _EQUAL_STEPS_ABOVE)


def is_low(steps: int, start: float, large: bool) -> bool:
    """Whether the engine has levels of its own for rho = start.

    >>> is_low(20, 6.6, large=False), is_low(20, 14.6, large=False), is_low(12, 14.6, large=False)
    (True, False, True)
    """
    return start < (LOW_START_OF_MANY if large else LOW_START) or (not large and has_equal_steps(steps, start))


def order_from_low_start(steps: int, start: float, large: bool) -> tuple[int | None, bool]:
    """The fewest values of the engine, None for its default, and whether the last ones are extrapolated."""
    if large:
        return (2 if steps <= (SOME_STEPS if start < LOW_START else ANY_STEPS) else None), True
    if start < LOWEST_START:
        return (2 if steps <= ANY_STEPS else None), False
    if has_equal_steps(steps, start):
        return 2, False
    return (2, True) if steps in _EXTRAPOLATED_STEPS else (None, False)


def low_start_grid(path: Path, steps: int, start: float, large: bool = False) -> Tensor:
    """The times of the engine from a low start: (steps + 1,) float64.

    The exponent of the levels falls as the steps grow.

    In many dimensions from a start below rho = 10 it is 45 / steps up to 7 steps, 6 up to 13, and 80 / steps beyond, of
    3 at least. The last level is 2.7 / steps^2, of 0.08 at most, and 2 / steps^2 beyond 16 steps.

    Many dimensions from a higher start have equal steps of log rho, of exponent infinity, up to 8 steps, the exponent
    40 / (steps - 8), of 10 at least, up to 15, and 8 beyond. The last level is the lower of 4 / steps^2 and 1 / (2
    steps), and 2.7 / steps^2 beyond 15 steps.

    A few dimensions have equal steps of log rho and the last level 1.8 / steps^2 with 10 to 13 steps from a start
    between 4.5 and 10, and with 11 and 12 from one between 10 and 20. With 14 and 15 steps from a start above 4.5 the
    exponent is 9, and the last level 2.7 / steps^2. With other numbers of steps the exponent rises with the start and
    is between 3 and 7, and the last level is 2 / steps^2, or from a start below 4.5 up to 15 steps 1.4 / steps^2.

    >>> from solvers import Scales
    >>> low = lambda t: Scales(torch.ones_like(t), 3 * t, torch.zeros_like(t), torch.zeros_like(t))
    >>> 3 * low_start_grid(low, 12, 3.0)[::4]
    tensor([3.0000, 0.6563, 0.0853, 0.0000], dtype=torch.float64)
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    if large and start < LOW_START:
        p = max(45 / steps, min(6.0, 80 / steps), 3.0)
        low = min((2.7 if steps <= _LOW_STEPS else 2) / steps**2, 0.08, start / 8)
    elif large:
        p = max(40 / (steps - _EVEN_STEPS), 10.0 if steps <= ANY_STEPS else 8.0) if steps > _EVEN_STEPS else math.inf
        low = min(4 / steps**2, 0.5 / steps) if steps <= ANY_STEPS else 2.7 / steps**2
    elif has_equal_steps(steps, start):
        p, low = math.inf, 1.8 / steps**2
    elif start < LOWEST_START and steps <= ANY_STEPS:
        p = min(max(6.0 * (SOME_STEPS / steps) ** 0.6, 3.0), 7.0)
        low = min(1.4 / steps**2, start / 8)
    elif steps in _EXTRAPOLATED_STEPS:
        p, low = 9.0, 2.7 / steps**2
    else:
        p = min(max(5.0 * (start / 3) ** 0.43 * (SOME_STEPS / steps) ** 0.4, 3.0), 7.0)
        low = min(2 / steps**2, start / 8)
    if p == math.inf:
        rho = start * (low / start) ** share
    else:
        rho = (start ** (1 / p) + share * (low ** (1 / p) - start ** (1 / p))) ** p
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")
    return torch.cat([ends[:1], time_at(path, -torch.log(rho[1:])), ends[1:]])
