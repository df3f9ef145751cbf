r"""Resampling: ancestral steps that go back and forth (Lugmayr et al. 2022, RePaint, algorithm 1).

After every j steps the state is noised back over these j steps and denoised again, r - 1 times:

    x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) xi.

Both directions keep the marginals of an exact model, so that nothing changes there but the noise. With a model whose
prediction is pinned to an observation (``guidance.Replacement``) the repetitions bring the free part into agreement
with the observed part: together they are RePaint, which draws the observed part of x_s from its own marginal
N(alpha_s y, sigma_s^2), as the ancestral step with D = y there does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from solvers.diffusion.edm import add_noise
from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.planning import ends_at_data
from solvers.problem import ReverseProcess
from solvers.solver import Solver


class ResamplingState(NamedTuple):
    """The times of the grid, the number of steps done, and how many belong to stretches that are repeated."""

    times: tuple[Tensor, ...]
    done: int
    repeated: int


@dataclass(frozen=True)
class Resampling(Solver):
    """Ancestral sampling with repeated jumps; RePaint with ``guidance.Replacement``.

    A run of n steps makes n + (r - 1) j floor((n - 1) / j) evaluations: the last step, to the data, is not repeated.

    Args:
        repeats: r, how often each stretch is run, at least 1; 10 in the paper.
        jump: j, steps of a stretch, at least 1; 10 in the paper, with 250 steps.

    Raises:
        ValueError: settings below 1, a process without noise, a grid that runs towards the noise.

    >>> Resampling(repeats=10, jump=10).evaluations(steps=251), Resampling(repeats=3).evaluations(steps=5)
    (2501, 13)
    """

    repeats: int = 4
    jump: int = 1

    order = 1
    stochastic = True
    needs = (ReverseProcess,)
    source = "Lugmayr et al. 2022, algorithm 1"

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.jump < 1:
            raise InputError(f"expected repeats and jump from 1 up; got repeats={self.repeats}, jump={self.jump}")

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """One for each step, and (r - 1) j for each whole stretch of j steps."""
        own = steps - finish
        return own + (self.repeats - 1) * self.jump * (own // self.jump) + finish

    def init(self, problem: ReverseProcess, times: Tensor) -> ResamplingState:
        """The grid.

        Raises:
            ValueError: a grid that runs towards the noise.
        """
        if times[-1] > times[0]:
            raise InputError("resampling adds noise on the way to the data, but the grid increases")
        own = len(times) - 1 - int(ends_at_data(problem, times))
        repeated = own - own % self.jump if self.repeats > 1 else 0
        return ResamplingState(times.unbind(), 0, repeated)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: ResamplingState, noise: Noise
    ) -> tuple[Tensor, Tensor, ResamplingState]:
        """One ancestral step, and at the end of a stretch its repetitions."""

        def move(x: Tensor, a: Tensor, b: Tensor, key: int | None) -> Tensor:
            # The last pass follows the Brownian path, the others have noise of their own.
            xi = None
            if problem.eta > 0:
                xi = noise.increment(x, a, b) if key is None else noise.independent(x, b, key)
            return ancestral_step(problem, x, problem.denoise(x, a), a, b, xi)

        done = state.done + 1
        x = move(x, t, s, 0 if done <= state.repeated else None)
        if done <= state.repeated and done % self.jump == 0:
            stretch = state.times[done - self.jump : done + 1]
            for k in range(1, self.repeats):
                x = add_noise(problem, x, s, stretch[0], noise.independent(x, s, 2 * k + 1))
                for a, b in pairwise(stretch):
                    x = move(x, a, b, 2 * k if k < self.repeats - 1 else None)
        return x, s, ResamplingState(state.times, done, state.repeated)
