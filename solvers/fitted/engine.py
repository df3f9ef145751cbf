r"""The exponential engine of ``pf-ode``: its method and its times for any number of steps.

It has data prediction and the corrector. Beyond 12 steps it is polynomials in the clock through five values or, where a
sample's values are rough, through fewer (``solvers.exponential.variable_order``; down to two up to 15 steps, to four
beyond), of order 6, on clock u^2.5 down to rho = 2 / steps^2 (beyond 20 steps u^(3 - 10 / steps), and rho falls
faster). With fewer steps it goes through two values, in lambda up to 6 steps and in the clock up to 12. In many
dimensions the order is chosen from 10 steps on; up to 12, where the engine is better than a table, the noise levels are
higher and end at 5 / steps^2. In many dimensions the last values are extrapolated to zero noise
(``solvers.exponential.zero_noise``). From a low start levels and order are those of ``solvers.fitted.low_start``. The
clock is a function of rho alone (``solvers.noise_clock``), so one engine serves every path.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.low_start import (
    ANY_STEPS,
    SOME_STEPS,
    has_equal_steps,
    is_low,
    low_start_grid,
    order_from_low_start,
)
from solvers.grids import power, time_at
from solvers.problem import Path

_FEW = ExponentialAdams(2, variable="lambda", corrector=True)
_SOME = ExponentialAdams(2, variable="time", corrector=True)
_MANY = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
_FEW_STEPS = 6
_FINE = 20  # steps from which the grid is denser near the data

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


def prefers_engine(steps: int, large: bool, start: float = math.inf) -> bool:
    """Whether the engine is better than a table for so many steps from rho = start.

    >>> prefers_engine(10, True), prefers_engine(10, False), prefers_engine(9, True), prefers_engine(10, False, 6.6)
    (True, False, False, True)
    """
    return steps in ENGINE_STEPS if large else has_equal_steps(steps, start)


def engine_grid(path: Path, steps: int, large: bool = False) -> Tensor:
    """The times of the engine's member for a number of steps: (steps + 1,) float64."""
    start = noise_of_start(path)
    if is_low(steps, start, large):
        return low_start_grid(path, steps, start, large)
    fine = max(steps / _FINE, 1.0)
    last, larger = (_ENGINE_LAST, _ENGINE_LARGER) if prefers_engine(steps, large) else (2.0, LARGER)
    low = min(last / steps**2, 0.5) / math.sqrt(fine)
    times = power(path, steps, low, 3 - 0.5 / fine)
    return shift_noise_levels(path, times, larger) if large else times


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
    if is_low(steps, start, large):
        fewest, extrapolated = order_from_low_start(steps, start, large)
    elif steps <= SOME_STEPS and not prefers_engine(steps, large):
        return _FEW if steps <= _FEW_STEPS else _SOME
    else:
        fewest, extrapolated = (2 if steps <= ANY_STEPS else None), large
    return replace(_MANY, fewest=fewest, extrapolated=extrapolated)


def fixed_order_engine(steps: int) -> ExponentialAdams:
    """The engine for a number of steps, at its full order for every sample.

    >>> fixed_order_engine(8).order, fixed_order_engine(20).order
    (3, 6)
    """
    member = engine_for(steps)
    return member.larger if isinstance(member, VariableOrder) else member
