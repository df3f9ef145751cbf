r"""The exponential engine of ``pf-ode``: its method and its times for any number of steps.

It has data prediction and the corrector. Beyond 12 steps it is polynomials in the clock through five values or, where a
sample's values are rough, through fewer (``solvers.exponential.variable_order``; down to two up to 15 steps, to four
beyond), of order 6, on clock u^2.5 down to rho = 2 / steps^2 (beyond 20 steps u^(3 - 10 / steps), and rho falls
faster). With fewer steps it goes through two values, in lambda up to 6 steps and in the clock up to 12. From a low
start the levels are those of Karras et al. 2022, and the order is chosen with any number of steps. The clock is a
function of rho alone (``solvers.noise_clock``), so one engine serves every path.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.grids import GRIDS, power, time_at
from solvers.problem import Path

_FEW = ExponentialAdams(2, variable="lambda", corrector=True)
_SOME = ExponentialAdams(2, variable="time", corrector=True)
_MANY = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
_ANY = replace(_MANY, fewest=2)
_FEW_STEPS, _SOME_STEPS, _ANY_STEPS = 6, 12, 15
_COARSE_STEPS = 6  # steps below which the last level stays high
_FINE = 20  # steps from which the grid is denser near the data

LOW_START = 10.0  # the rho of the start below which there are levels for every number of steps
LOWEST_START = 4.5  # the same for a few dimensions, below which the order is chosen from 2 values up
_LOW = 40.0  # the rho of the start below which many dimensions get the levels of Karras et al.
_EVEN_STEPS = 8  # steps up to which these are equal steps of log rho

# Features that many pixels share are decided at higher noise levels: for samples of many dimensions, noise levels are
# so many times as high. The factor was fitted to 500 to 3,072 dimensions.
LARGER = 1.5
_DETAIL = 0.3  # rho below which the grid is raised less


def noise_of_start(path: Path) -> float:
    """Sigma / alpha at t = 1."""
    alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64, device="cpu"))[:2])
    return sigma / alpha if alpha > 0 else math.inf


def engine_grid(path: Path, steps: int, large: bool = False) -> Tensor:
    """The times of the engine's member for a number of steps: (steps + 1,) float64."""
    start = noise_of_start(path)
    if large and LOW_START <= start < _LOW and steps > _SOME_STEPS:
        return GRIDS["karras"](path, steps)
    if start < (_LOW if large else LOW_START):
        return low_start_grid(path, steps, start, large)
    fine = max(steps / _FINE, 1.0)
    low = min(2 / steps**2, 0.5) / math.sqrt(fine)
    times = power(path, steps, low, 3 - 0.5 / fine)
    return shift_noise_levels(path, times, LARGER) if large else times


def low_start_grid(path: Path, steps: int, start: float, large: bool = False) -> Tensor:
    """The times of the engine from a low start: (steps + 1,) float64.

    They are the levels of Karras et al. 2022, eq. 5, with an exponent that falls as the steps grow and rises with the
    start. From a start below rho = 10 it is between 3 and 9, and the last level is 2 / steps^2, in many dimensions from
    6 steps at most start / 125 (in a few dimensions from a start below 4.5 up to 15 steps 1.4 / steps^2). Many
    dimensions from a higher start have equal steps of log rho, of exponent infinity, up to 8 steps, the exponent
    28 / (steps - 8) beyond, and the last level 2.5 / steps^2, of 0.08 at most. From 13 steps they have the default
    levels of Karras et al., with exponent 7.

    >>> from solvers import Scales
    >>> low = lambda t: Scales(torch.ones_like(t), 3 * t, torch.zeros_like(t), torch.zeros_like(t))
    >>> 3 * low_start_grid(low, 12, 3.0)[::4]
    tensor([3.0000, 0.6563, 0.0853, 0.0000], dtype=torch.float64)
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    if start < LOWEST_START and not large and steps <= _ANY_STEPS:
        p = min(max(6.0 * (_SOME_STEPS / steps) ** 0.6, 3.0), 7.0)
        low = min(1.4 / steps**2, start / 8)
    elif start < LOW_START and large:
        exponent = 5.0 * (start / 3) ** 0.43 * (_SOME_STEPS / steps) ** 0.7
        p = min(max(exponent, 3.0), 5.0 * (start / 3) ** (0.7 if steps < _EVEN_STEPS else 0.2))
        low = min(2 / steps**2, start / (125 if steps >= _COARSE_STEPS else 8))
    elif start < LOW_START:
        p = min(max(5.0 * (start / 3) ** 0.43 * (_SOME_STEPS / steps) ** 0.4, 3.0), 7.0)
        low = min(2 / steps**2, start / 8)
    else:
        p = 28 / (steps - _EVEN_STEPS) if steps > _EVEN_STEPS else math.inf
        low = min(2.5 / steps**2, 0.08)
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
    """The engine; from a low start, on levels of Karras et al., the order may rise with fewer steps already."""
    if start < LOWEST_START and not large:
        return _ANY if steps <= _ANY_STEPS else _MANY
    if start < (_LOW if large else LOW_START):
        return _ANY if large and steps <= _SOME_STEPS else _MANY
    if steps <= _SOME_STEPS:
        return _FEW if steps <= _FEW_STEPS else _SOME
    return _ANY if steps <= _ANY_STEPS else _MANY


def fixed_order_engine(steps: int) -> ExponentialAdams:
    """The engine for a number of steps, at its full order for every sample.

    >>> fixed_order_engine(8).order, fixed_order_engine(20).order
    (3, 6)
    """
    member = engine_for(steps)
    return member.larger if isinstance(member, VariableOrder) else member
