"""The exact law of a solver's result on Gaussian data in one dimension, without Monte Carlo.

There every solver is an affine map of the start and of the normals it draws. Row 0 of a batch
starts one standard deviation from the mean and draws zeros, row k starts at the mean and draws a
one as its k-th normal: the squares of what the rows add to the mean's own result sum to the
variance.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian
from solvers import Solver, steps


class Impulses:
    """Answers the k-th question with ``unit`` in row k of the batch and zeros elsewhere."""

    def __init__(self, unit: float, asked: int = 0) -> None:
        self.unit, self.asked = unit, asked

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.asked += 1
        out = torch.zeros_like(x)
        out[self.asked % len(x)] = self.unit
        assert self.unit == 0 or self.asked < len(x)
        return out

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        return self.increment(x, t, t)

    def rows(self, index: Tensor) -> Impulses:
        raise AssertionError("only adaptive solvers take rows, and they are not linear in x")


def law(data: Gaussian, solver: Solver, times: Tensor, *, eta: float = 1.0, draws: int = 2) -> tuple[float, float]:
    """Mean and variance at the last time of a run that starts from the exact law at the first.

    Args:
        data: in one dimension.
        solver: linear in x and its noise, at most ``draws`` normals per step.
        times: the grid.
    """
    process = data.sde.reverse(data, eta=eta)
    mean, variance = data.moments(times[0])

    def run(x: Tensor, noise: Impulses) -> Tensor:
        for step in steps(process, x, times, solver, noise):
            last = step.x
        return last

    centre = run(mean[None], Impulses(0.0))
    x = mean.repeat(draws * len(times) + 1, 1)
    x[0] += variance[0, 0].sqrt()
    return float(centre), float((run(x, Impulses(1.0)) - centre).square().sum())


def chain_law(
    data: Gaussian, solver: Solver, times: Tensor, *, eta: float = 1.0, draws: int = 4
) -> tuple[float, float]:
    """As ``law`` for a solver without memory, step by step: quick for any number of steps."""
    process = data.sde.reverse(data, eta=eta)
    mean, variance = (float(c) for c in data.moments(times[0]))
    probe = torch.zeros(draws + 2, 1, dtype=torch.float64)
    probe[1] = 1.0
    for t, s in pairwise(times):
        if float(process.path(s).sigma) == 0:
            out = process.finish(probe, t)
        else:
            out = solver.step(process, probe, t, s, None, Impulses(1.0, asked=1))[0]
        gain = float(out[1] - out[0])
        mean = float(out[0]) + gain * mean
        variance = gain**2 * variance + float((out[2:] - out[0]).square().sum())
    return mean, variance


def orders(errors: list[float]) -> list[float]:
    """Fitted orders between runs of doubled step numbers."""
    e = torch.tensor(errors, dtype=torch.float64)
    return torch.log2(e[:-1] / e[1:]).tolist()


def quadratic(steps: int, end: float = 0.05) -> Tensor:
    """Times from 1 to ``end``, linear in the square root."""
    times = torch.linspace(1, end**0.5, steps + 1, dtype=torch.float64) ** 2
    times[-1] = end
    return times
