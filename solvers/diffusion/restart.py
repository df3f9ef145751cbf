r"""Restart sampling: the flow, with stretches of it run again after fresh noise.

Once the flow has come down to rho_low, the following is done K times: the forward process takes x
back to rho_high,

    x <- alpha_high/alpha_low x + alpha_high sqrt(rho_high^2 - rho_low^2) xi,

and the flow brings it down to rho_low again, in n - 1 steps of Heun's method between n noise levels
that are linear in rho^(1/7) (Xu et al. 2023, algorithm 1 and section 3). Large noise contracts the
errors made so far, and the steps stay those of the ODE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.diffusion.edm import add_noise, heun_step
from solvers.errors import InputError
from solvers.grids import time_at
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver


class RestartInterval(NamedTuple):
    """A stretch of rho that is run again.

    Attributes:
        repeats: number of repetitions, K.
        low: rho at its end. The grid's nearest time is taken, and ``high`` moves in proportion.
        high: rho at its start.
        points: noise levels n of each repetition, >= 2; None for one step in every 9 of the run, so
            that it is refined as the run is and left out of runs of less than 9 steps.
    """

    repeats: int
    low: float
    high: float
    points: int | None = None

    def steps(self, of: int) -> int:
        """Steps of one repetition in a run of so many."""
        return of // 9 if self.points is None else self.points - 1


Repetition = tuple[int, tuple[Tensor, ...]]


class RestartState(NamedTuple):
    """The repetitions after each step of the grid, (number, times), and how many steps are done."""

    repetitions: tuple[tuple[Repetition, ...], ...]
    done: int


@dataclass(frozen=True)
class Restart(Solver):
    """Heun's method in rho with restarts.

    A run of n steps makes 2 n - 1 evaluations and 2 K (points - 1) for each interval: with the
    default, 43 for 18 steps, the setting of the paper for CIFAR-10. The noise comes from the
    restarts, so it takes the flow (eta = 0) or the reverse-time SDE (eta = 1), with one and the same result,
    and refuses every other eta.

    Args:
        intervals: the repeated intervals.
        s_noise: factor on the new noise; other than 1 it changes the marginals on purpose.

    Raises:
        ValueError: settings out of range; another eta; a grid that runs towards the noise.

    >>> [Restart().evaluations(steps) for steps in (8, 9, 18)]
    [15, 21, 43]
    """

    intervals: tuple[RestartInterval, ...] = (RestartInterval(repeats=2, low=0.06, high=0.30),)
    s_noise: float = 1.0

    order = 2
    stages = 2
    stochastic = True
    needs = (ReverseProcess,)
    grid = "karras"
    source = "Xu et al. 2023, algorithm 1"

    def __post_init__(self) -> None:
        for interval in self.intervals:
            repeats, low, high, points = interval
            if repeats < 0 or not 0 < low < high < math.inf or (points is not None and points < 2):
                raise InputError(f"expected repeats >= 0, 0 < low < high and points >= 2 or None; got {interval}")
        if not self.s_noise > 0:
            raise InputError(f"s_noise must be positive; got {self.s_noise}")

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """Two for each step and each repeated step, one for the last step to sigma = 0."""
        own = steps - finish
        again = sum(interval.repeats * interval.steps(steps) for interval in self.intervals)
        return 2 * (own + (again if own else 0)) + finish

    def init(self, problem: ReverseProcess, times: Tensor) -> RestartState:
        """The times of every repetition; they are cached."""
        if problem.eta not in (0, 1):
            raise InputError(
                f"restarts add noise of their own, whatever the noise level of the process: eta = {problem.eta:g} "
                "would change nothing. Leave eta out, set Restart(intervals=...), or use ddpm, which has an eta"
            )
        if times[-1] > times[0]:
            raise InputError("restarts add noise on the way to the data, but the grid increases")
        return RestartState(_repetitions(self.intervals, problem.path, tuple(times.tolist())), 0)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: RestartState, noise: Noise
    ) -> tuple[Tensor, Tensor, RestartState]:
        """One step of Heun's method, then the repetitions that end at s."""
        x = heun_step(problem, x, t, s)
        for key, again in state.repetitions[state.done]:
            # Keyed by the repetition and not by a time of the grid: runs of other NFE get the same noise.
            xi = noise.independent(x, torch.zeros((), device="cpu"), key)
            x = add_noise(problem, x, s, again[0], xi if self.s_noise == 1 else xi * self.s_noise)
            for a, b in pairwise(again):
                x = heun_step(problem, x, a, b)
        return x, s, RestartState(state.repetitions, state.done + 1)


@lru_cache(maxsize=128)
def _repetitions(
    intervals: tuple[RestartInterval, ...], path: Path, times: tuple[float, ...]
) -> tuple[tuple[Repetition, ...], ...]:
    """For each step of the grid, the repetitions after it."""
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    alpha, sigma = path(t)[:2]
    rho = sigma / alpha
    ends = [i for i in range(1, len(times)) if rho[i] > 0]
    found: list[list[Repetition]] = [[] for _ in times]
    for number, interval in enumerate(intervals if ends else ()):
        m = interval.steps(len(times) - 1)
        if m == 0:
            continue
        low = min(ends, key=lambda i: abs(math.log(float(rho[i]) / interval.low)))
        end = float(rho[low])
        start = min(end * interval.high / interval.low, float(rho[0]))
        levels = torch.linspace(start ** (1 / 7), end ** (1 / 7), m + 1, dtype=torch.float64, device="cpu") ** 7
        inner = time_at(path, -torch.log(levels))
        again = (*inner[:-1].unbind(), t[low])
        found[low - 1] += [(64 * number + k, again) for k in range(interval.repeats)]
    return tuple(tuple(repetitions) for repetitions in found)
