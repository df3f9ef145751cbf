r"""Exact linear propagation of noise: what a stochastic solver does to Gaussian data.

On Gaussian data the denoiser is affine, so most solvers map a starting point and the normals they
draw to an affine combination x_N = b + a x_1 + sum_j c_j xi_j. A batch whose rows hold one unit
each (x_1 = 1, or one xi_j = 1, all else 0) reads off b, a and every c_j in one run.

The driving Brownian motion is one xi for each piece between neighbouring times that any of the
requested runs, so increments over overlapping intervals, and those of coarse and fine grids, are
correlated as on one path. Noise independent of the path is one xi for each time and
index of the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.verify.targets import DTYPE, run
from solvers import Equation, ReverseProcess, Solver
from solvers.brownian_path import TimeChange


class AffineMap(NamedTuple):
    """x_N = shift + gain x_1 + sum_j weights[j] xi_j.

    Attributes:
        shift: b.
        gain: a.
        weights: c, (number of normals,).
    """

    shift: float
    gain: float
    weights: Tensor

    def moments(self, mean: float, variance: float) -> tuple[float, float]:
        """Mean and variance of x_N, from those of x_1.

        >>> AffineMap(1.0, 0.5, torch.tensor([0.5, 0.5])).moments(mean=2.0, variance=1.0)
        (2.0, 0.75)
        """
        noise = float(self.weights.square().sum())
        return self.shift + self.gain * mean, self.gain**2 * variance + noise

    def distance(self, other: AffineMap, mean: float, variance: float) -> float:
        """Root mean square of x_N - y_N for another map of the same x_1 and the same normals."""
        shift, gain = self.shift - other.shift, self.gain - other.gain
        noise = float((self.weights - other.weights).square().sum())
        return ((shift + gain * mean) ** 2 + gain**2 * variance + noise) ** 0.5


def affine_maps(solver: Solver, problem: Equation | ReverseProcess, grids: Sequence[Tensor]) -> list[AffineMap] | None:
    """The maps of several grids in terms of the same normals.

    Args:
        solver: a fixed-step solver.
        problem: one whose coefficients are affine in x, for x of one dimension.
        grids: the times of each run.

    Returns:
        One map for each grid, or None if the solver is not affine in x and the noise there.
    """
    record = _Recorder()
    for times in grids:
        run(solver, problem, torch.zeros(1, 1, dtype=DTYPE), times, record)
    units = _Units(record, problem.clock)
    x = torch.zeros(units.size + 3, 1, dtype=DTYPE)
    x[1], x[-1] = 1.0, 2.0
    maps = []
    for times in grids:
        out = run(solver, problem, x, times, units).flatten()
        shift, gain, weights = out[0], out[1] - out[0], out[2:-1] - out[0]
        combined = shift + 2 * gain + (weights * units.signs).sum()
        scale = shift.abs() + gain.abs() + weights.abs().sum()
        if not float((out[-1] - combined).abs()) <= 1e-9 * float(scale):
            return None
        maps.append(AffineMap(float(shift), float(gain), weights))
    return maps


@dataclass
class _Recorder:
    """Returns zeros and records the requests."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    others: dict[tuple[float, int], int] = field(default_factory=dict)

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.spans.append((float(t), float(s)))
        return torch.zeros_like(x)

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        self.others.setdefault((float(t), k), len(self.others))
        return torch.zeros_like(x)

    def rows(self, index: Tensor) -> _Recorder:
        return self


class _Units:
    """Answers the same questions with unit vectors along the batch; the last row gets all."""

    def __init__(self, record: _Recorder, clock: TimeChange) -> None:
        times = sorted({t for span in record.spans for t in span})
        self.place = {t: i for i, t in enumerate(times)}
        self.at = [clock.variance(clock.position(t)) for t in times]
        self.pieces = torch.tensor(self.at, dtype=DTYPE).diff().abs()
        self.others = {key: len(self.pieces) + i for key, i in record.others.items()}
        self.size = len(self.pieces) + len(self.others)
        self.signs = torch.tensor([(-1.0) ** (i * i // 3) for i in range(self.size)], dtype=DTYPE)

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        i, j = self.place[float(t)], self.place[float(s)]
        inside = slice(min(i, j), max(i, j))
        weights = (self.pieces[inside] / self.pieces[inside].sum()).sqrt()
        # W(s) - W(t) on the clock: against its direction, it is minus the same pieces.
        return self._answer(x, inside, weights if self.at[j] >= self.at[i] else -weights)

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        i = self.others[float(t), k]
        return self._answer(x, slice(i, i + 1), torch.ones(1, dtype=DTYPE))

    def _answer(self, x: Tensor, where: slice, weights: Tensor) -> Tensor:
        column = x.new_zeros(len(x), 1)
        column[2 + where.start : 2 + where.stop, 0] = weights
        column[-1, 0] = (weights * self.signs[where]).sum()
        return column

    def rows(self, index: Tensor) -> _Units:
        return self
