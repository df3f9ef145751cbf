r"""The fitted tables of ``pf-ode``: noise levels, weights and gates for few steps, from every start.

``pf_ode.json`` holds one entry for each number of steps N, made by ``benchmarks/design.py``. With the clock tau of
``solvers.noise_clock``, tau_1 at the start, z = x / alpha and rho = sigma / alpha, it holds the coefficients of

    tau_i = tau_1 prod_{j <= i} sigmoid(q_j),
    a_i = rho_{i+1} / rho_i (1 + kappa_i),
    z_{i+1} = a_i z_i + (1 - a_i) D_i + sum_{k = 1..4} e_ik (D_{i-k+1} - D_{i-k}).

The weights of every row sum to 1 - a_i, so shifted data gives shifted samples; the last row has a = 0, so a point
mass is exact. q, kappa and e are piecewise linear in tau_1; q is also linear in the log of the number of dimensions.
kappa and e are means over several experts, with weights for each sample from features of its evaluations
(``solvers.fitted.mixture_of_tables``). The samples do not depend on the parametrization of time and, with the path in
units of the data's standard deviation, not on units.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.mixture_of_tables import GatingNetwork, MixtureOfTables
from solvers.fitted.table import Row, Table
from solvers.grids import time_at
from solvers.noise_clock import inverse_of_regular_clock, regular_clock
from solvers.problem import Path, Scales

_PLAIN = ExponentialAdams(2, variable="lambda")
_FILE = File(__file__).with_name("pf_ode.json")
_LOWEST_START = 2.0  # smallest rho of a start; tables were fitted to starts from 3 up
_FAR = 1e-5  # alpha / sigma at the highest noise levels


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text())
    return found


def fitted_steps() -> list[int]:
    """The numbers of steps with a fitted table.

    >>> 8 in fitted_steps()
    True
    """
    return sorted(map(int, _content()["tables"]))


@dataclass(frozen=True)
class InUnits:
    """A path in units of the data: sigma / unit instead of sigma.

    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> float(InUnits(straight, 2.0)(torch.tensor(0.5)).sigma)
    0.25
    """

    path: Path
    unit: float

    def __call__(self, t: Tensor) -> Scales:
        """The scales at t."""
        alpha, sigma, dalpha, dsigma = self.path(t)
        return Scales(alpha, sigma / self.unit, dalpha, dsigma / self.unit)


@lru_cache(maxsize=256)
def fitted_table(path: Path, steps: int, dimensions: int = 64) -> MixtureOfTables | None:
    """The fitted table for a number of steps on a path; None without a table or for a start below rho = 2.

    Args:
        path: the scales; ``InUnits`` if the data's standard deviation is not about 0.5.
        steps: number of evaluations.
        dimensions: number of entries of a sample.

    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> len(fitted_table(straight, 8).times), fitted_table(straight, 1000)
    (9, None)
    """
    entry = _content()["tables"].get(str(steps))
    alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64, device="cpu"))[:2])
    if entry is None or sigma < _LOWEST_START * alpha:
        return None
    return table_of(path, entry, dimensions)


def table_of(path: Path, entry: dict[str, Any], dimensions: int) -> MixtureOfTables:
    """The table of an entry of the file, for a path and a number of dimensions."""
    alpha, sigma = path(torch.ones((), dtype=torch.float64, device="cpu"))[:2]
    start = regular_clock(alpha / sigma)
    share = _shares(float(start))
    logd = max(-1.5, min(1.5, math.log(dimensions / _content()["dimensions"]) / math.log(16)))
    q = share @ _double(entry["q"]) + logd * _double(entry["q_dims"])
    inverse = inverse_of_regular_clock(start * torch.sigmoid(q).cumprod(0)).clamp_min(_FAR)
    times = (1.0, *time_at(path, torch.log(inverse)).tolist(), 0.0)
    rows = [torch.einsum("k,kxj->xj", share, _double(row)) for row in entry["rows"]]
    gates = [_gate(gate, logd) for gate in entry["gates"]]
    # There are no features before the first row, so all samples have the same row.
    first = torch.softmax(_double(list(gates[0].offset)), 0)
    rows[0] = (first @ rows[0]).expand_as(rows[0])
    alpha, sigma = path(_double(list(times)))[:2]
    scales = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
    tables = tuple(
        Table(times, tuple(_row(row[k].tolist(), scales[i], scales[i + 1]) for i, row in enumerate(rows)))
        for k in range(len(rows[0]))
    )
    return MixtureOfTables(tables, (None, *gates[1:]), "solvers/fitted/pf_ode.json", _safe(path, times))


def _safe(path: Path, times: tuple[float, ...]) -> Table:
    """The exponential method with two values on the times of a table."""
    plan = _PLAIN.plan(path, 0.0, times)
    rows = [Row(step.predictor.decay, step.predictor.weights) for step in plan]
    return Table(times, (*rows, Row(0.0, (1.0,))))


def _row(numbers: list[float], now: tuple[float, float], then: tuple[float, float]) -> Row:
    """kappa and e of a row as weights of x and of the values, newest first."""
    kappa, *e = numbers
    (alpha, sigma), (next_alpha, next_sigma) = now, then
    decay = next_sigma / sigma * (1 + kappa)
    weights = [next_alpha - decay * alpha, *[0.0] * len(e)]
    for k, number in enumerate(e):
        weights[k] += next_alpha * number
        weights[k + 1] -= next_alpha * number
    return Row(decay, tuple(weights))


def _shares(start: float) -> Tensor:
    """The interpolation weights of the knots at the clock of a start."""
    inverse = _double([0.0 if k == "inf" else 1 / k for k in _content()["knots"]])
    knots = regular_clock(inverse)
    up = ((max(start, float(knots[0])) - knots[:-1]) / knots.diff()).clamp(0, 1)
    one, none = up.new_ones(1), up.new_zeros(1)
    return torch.cat([one, up]) - torch.cat([up, none])


def _gate(gate: list[Any], logd: float) -> GatingNetwork:
    """The gating network for a number of dimensions."""
    centre, width, slopes, offset = gate
    told = [o + logd * s for o, s in zip(offset, slopes[-1], strict=True)]
    return GatingNetwork.of(centre, width, slopes[:-1], told)


def _double(numbers: list[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
