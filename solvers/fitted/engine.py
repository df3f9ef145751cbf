r"""The exponential engine of ``pf-ode``: its method and its times for any number of steps.

It has data prediction and the corrector. Beyond 12 steps it is polynomials in the clock through five values or, where a
sample's values are rough, through fewer (``solvers.exponential.variable_order``; down to two up to 15 steps, to four
beyond), of order 6, on clock u^2.5 down to rho = 2 / steps^2 (beyond 20 steps u^(3 - 10 / steps), and rho falls
faster). With fewer steps it goes through two values, in lambda up to 6 steps and in the clock up to 12. In many
dimensions the order is chosen from 10 steps on; up to 12, where the engine is better than a table, the noise levels are
higher and end at 5 / steps^2. From a low start the levels are those of Karras et al. 2022, and the order is chosen with
any number of steps. In many dimensions, and in a few from some low starts with 12 to 15 steps, the last values are
extrapolated to zero noise (``solvers.exponential.zero_noise``). The clock is a function of rho alone
(``solvers.noise_clock``), so one engine serves every path.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.grids import power, time_at
from solvers.problem import Path

_FEW = ExponentialAdams(2, variable="lambda", corrector=True)
_SOME = ExponentialAdams(2, variable="time", corrector=True)
_MANY = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
_ANY = replace(_MANY, fewest=2)
_FEW_STEPS, _SOME_STEPS, _ANY_STEPS = 6, 12, 15
_FINE = 20  # steps from which the grid is denser near the data

LOW_START = 10.0  # the rho of the start below which there are levels for every number of steps
LOWEST_START = 4.5  # the same for a few dimensions, below which the order is chosen from 2 values up
_EXTRAPOLATED_STEPS = range(12, 16)  # of a few dimensions from a start between these two
_LOW = 40.0  # the rho of the start below which many dimensions get the levels of Karras et al.
_LOW_STEPS = 16  # steps from a start below LOW_START beyond which the last level is lower
_EVEN_STEPS = 8  # steps up to which these are equal steps of log rho

# Features that many pixels share are decided at higher noise levels: for samples of many dimensions, noise levels are
# so many times as high. The factor was fitted to 500 to 3,072 dimensions.
LARGER = 1.5
ENGINE_STEPS = range(10, 13)  # of many dimensions, where the engine is better than a table
_ENGINE_LARGER, _ENGINE_LAST = 2.0, 5.0  # the factor with these, and the last level in units of 1 / steps^2
_DETAIL = 0.3  # rho below which the grid is raised less


def noise_of_start(path: Path) -> float:
    """Sigma / alpha at t = 1."""
    alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64, device="cpu"))[:2])
    return sigma / alpha if alpha > 0 else math.inf


def prefers_engine(steps: int, large: bool) -> bool:
    """Whether the engine is better than a table for so many steps, from every start.

    >>> prefers_engine(10, True), prefers_engine(10, False), prefers_engine(9, True)
    (True, False, False)
    """
    return large and steps in ENGINE_STEPS


def engine_grid(path: Path, steps: int, large: bool = False) -> Tensor:
    """The times of the engine's member for a number of steps: (steps + 1,) float64."""
    start = noise_of_start(path)
    if start < (_LOW if large else LOW_START):
        return low_start_grid(path, steps, start, large)
    fine = max(steps / _FINE, 1.0)
    last, larger = (_ENGINE_LAST, _ENGINE_LARGER) if prefers_engine(steps, large) else (2.0, LARGER)
    low = min(last / steps**2, 0.5) / math.sqrt(fine)
    times = power(path, steps, low, 3 - 0.5 / fine)
    return shift_noise_levels(path, times, larger) if large else times


def low_start_grid(path: Path, steps: int, start: float, large: bool = False) -> Tensor:
    """The times of the engine from a low start: (steps + 1,) float64.

    They are the levels of Karras et al. 2022, eq. 5. Their exponent falls as the steps grow.

    In many dimensions from a start below rho = 10 it is 45 / steps up to 7 steps, 6 up to 13, and 80 / steps beyond, of
    3 at least. The last level is 2.7 / steps^2, of 0.08 at most, and 2 / steps^2 beyond 16 steps.

    Many dimensions from a higher start have equal steps of log rho, of exponent infinity, up to 8 steps, the exponent
    40 / (steps - 8), of 10 at least, up to 15, and 8 beyond. The last level is the lower of 4 / steps^2 and 1 / (2
    steps), and 2.7 / steps^2 beyond 15 steps.

    In a few dimensions from 12 to 15 steps the exponent is 9, and the last level 2.7 / steps^2. With other numbers of
    steps the exponent rises with the start and is between 3 and 7, and the last level is 2 / steps^2 (from a start
    below 4.5 up to 15 steps 1.4 / steps^2).

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
        p = max(40 / (steps - _EVEN_STEPS), 10.0 if steps <= _ANY_STEPS else 8.0) if steps > _EVEN_STEPS else math.inf
        low = min(4 / steps**2, 0.5 / steps) if steps <= _ANY_STEPS else 2.7 / steps**2
    elif start < LOWEST_START and steps <= _ANY_STEPS:
        p = min(max(6.0 * (_SOME_STEPS / steps) ** 0.6, 3.0), 7.0)
        low = min(1.4 / steps**2, start / 8)
    elif steps in _EXTRAPOLATED_STEPS:
        p, low = 9.0, 2.7 / steps**2
    else:
        p = min(max(5.0 * (start / 3) ** 0.43 * (_SOME_STEPS / steps) ** 0.4, 3.0), 7.0)
        low = min(2 / steps**2, start / 8)
    if p == math.inf:
        rho = start * (low / start) ** share
    else:
        rho = (start ** (1 / p) + share * (low ** (1 / p) - start ** (1 / p))) ** p
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")
    return torch.cat([ends[:1], time_at(path, -torch.log(rho[1:])), ends[1:]])


def shift_noise_levels(path: Path, times: Tensor, factor: float) -> Tensor:
    """Times with higher noise levels, by a factor at rho well above 0.3 and less so below and near the first.

    With f = 1 + (factor - 1) rho / (rho + 0.3) they are f rho / (1 + (f - 1) rho / rho_1), so the first stays. With f
    the same for all and rho_1 infinite this is the shift of Esser et al. 2024, eq. 23; what is below 0.3 are details,
    which many dimensions do not show any earlier.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> shift_noise_levels(straight, torch.tensor([1.0, 0.75, 0.01, 0.0], dtype=torch.float64), 2.0)
    tensor([1.0000, 0.8514, 0.0103, 0.0000], dtype=torch.float64)
    """
    if factor <= 0:
        raise InputError(f"the factor of the noise levels must be above 0; got {factor}")
    alpha, sigma = path(times)[:2]
    rho = (sigma / alpha)[1:-1]
    more = (factor - 1) * rho / (rho + _DETAIL)
    higher = (1 + more) * rho / (1 + more * rho * alpha[0] / sigma[0])
    return torch.cat([times[:1], time_at(path, -torch.log(higher)), times[-1:]])


def engine_for(steps: int, start: float = math.inf, large: bool = False) -> ExponentialAdams | VariableOrder:
    """The engine; from a low start the order may rise with fewer steps already."""
    high = start >= (_LOW if large else LOW_START)
    if steps <= _SOME_STEPS and high and not prefers_engine(steps, large):
        return _FEW if steps <= _FEW_STEPS else _SOME
    between = not large and LOWEST_START <= start < LOW_START
    extrapolated = large or (between and steps in _EXTRAPOLATED_STEPS)
    most = _SOME_STEPS if large and start < LOW_START else _ANY_STEPS  # for which the order may be low
    any_order = extrapolated if between else steps <= most
    return replace(_ANY if any_order else _MANY, extrapolated=extrapolated)


def fixed_order_engine(steps: int) -> ExponentialAdams:
    """The engine for a number of steps, at its full order for every sample.

    >>> fixed_order_engine(8).order, fixed_order_engine(20).order
    (3, 6)
    """
    member = engine_for(steps)
    return member.larger if isinstance(member, VariableOrder) else member
