"""Base class of solvers: settings, ``init`` and ``step``, and declarations.

A solver is a frozen dataclass. It holds settings only; whatever evolves during a run is the ``state``, which
``init`` makes and ``step`` passes on, so one solver object serves any number of runs and threads.

A fixed-step solver moves from t to s and returns x at s. An adaptive one may stop short of s and returns
the time it reached, one per sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError, StateError
from solvers.grids import make_grid
from solvers.noise import Noise
from solvers.problem import Equation, ReverseProcess


class LocalErrorEstimate(NamedTuple):
    """A local error estimate of a step, without further evaluations.

    Attributes:
        t: start of the step, 0-d or (B, 1, ..., 1).
        s: its end.
        error: RMS over the entries of each sample, in units of x, (B,); NaN where there is none.
    """

    t: Tensor
    s: Tensor
    error: Tensor


def sum_of(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_j weights[j] values[j], like a value."""
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=False):
        total.add_(value, alpha=weight)
    return total


def sample_rms(x: Tensor) -> Tensor:
    """Root mean square over the entries of each sample, float64 (B,).

    >>> sample_rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double()).tolist()
    [3.5355339059327378, 0.0]
    """
    return x.flatten(1).square().mean(1).sqrt().to(torch.float64)


def rms_of_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """RMS over the entries of each sample of sum_j weights[j] values[j], float64 (B,)."""
    return sample_rms(sum_of(weights, values))


class BudgetSpentError(StateError):
    """A network call would exceed the cap of a sample; raised at the call."""


@dataclass(frozen=True)
class Solver(ABC):
    """The base class of solvers; a new one defines ``order``, ``source`` and ``step``.

    Declarations are plain class attributes, or properties if they depend on settings.

    >>> from dataclasses import dataclass
    >>> from solvers import Equation, solve
    >>> @dataclass(frozen=True)
    ... class Slope(Solver):
    ...     order, source = 1, "Euler 1768"
    ...     def step(self, problem, x, t, s, state, noise):
    ...         return x + (s - t) * problem.drift(x, t), s, state
    >>> solve(Equation(lambda x, t: -x), torch.ones(1, 1), solver=Slope(), grid=[0.0, 0.5, 1.0]).x
    tensor([[0.2500]])
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Global order of convergence in the step size; the weak order for a stochastic solver."""

    @property
    def partial_order(self) -> int:
        """Order of runs that begin between noise and data, such as partial runs and encodings.

        There the first step of a multistep solver counts, which has one value; with a corrector its local error is of
        order 3. From t = 1 it does not, on the usual grids: little changes at high noise.
        """
        return min(self.order, 3) if self.uses_corrector else self.order

    @property
    @abstractmethod
    def source(self) -> str:
        """Publication of the method."""

    @property
    def stochastic(self) -> bool:
        """Whether it integrates processes with noise."""
        return False

    @property
    def strong_order(self) -> float | None:
        """Order on one Brownian path, for stochastic solvers."""
        return None

    @property
    def follows_path(self) -> bool:
        """Whether runs of a stochastic solver with other NFE, but one seed, approach one path."""
        return True

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps between the times of the grid."""
        return False

    @property
    def batch_independent(self) -> bool:
        """Whether a sample is the same in every batch; False only for some adapters of other libraries."""
        return True

    @property
    def needs(self) -> tuple[type, ...]:
        """The problem types it can integrate."""
        return (ReverseProcess, Equation)

    @property
    def stages(self) -> int:
        """Model evaluations in one step, or in one attempt of an adaptive solver."""
        return 1

    @property
    def owns_last_step(self) -> bool:
        """Whether it takes the step to sigma = 0 itself, with one evaluation like ``ReverseProcess.finish``."""
        return False

    @property
    def uses_corrector(self) -> bool:
        """Whether a step repeats the one before with the value at its end and overwrites what else was done to x."""
        return False

    @property
    def sees_channels(self) -> bool:
        """Whether means over the entries of a channel enter, so that images and vectors of the same values differ."""
        return False

    @property
    def data_independent(self) -> bool:
        """Whether the coefficients of a step are the same for every sample, whatever the model returns."""
        return True

    @property
    def grid(self) -> str | tuple[float, ...]:
        """The name of its default grid in ``GRIDS``, or the times themselves."""
        return "quadratic"

    @property
    def usual_nfe(self) -> int:
        """The number of evaluations where none is given."""
        return 20

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """Model evaluations of a run; of an adaptive solver the fewest, with one attempt in each interval.

        Args:
            steps: number of grid intervals.
            finish: whether the last interval ends at sigma = 0; that step is one evaluation in every solver.
        """
        return self.stages * (steps - 1) + 1 if finish else self.stages * steps

    def steps_for(self, evaluations: int, finish: bool = True) -> int:
        """The largest number of steps for a number of model evaluations.

        Raises:
            ValueError: too few evaluations for one step.
        """
        least = self.evaluations(1, finish)
        if evaluations < least:
            raise InputError(f"nfe = {evaluations} is too small: {type(self).__name__} needs at least {least}")
        low, high = 1, 2
        while self.evaluations(high, finish) <= evaluations:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.evaluations(middle, finish) <= evaluations else (low, middle)
        return low

    def estimate(
        self, problem: Any, x: Tensor, t: Tensor, s: Tensor, before: Any, after: Any
    ) -> LocalErrorEstimate | None:
        """The local error estimate that a step gives, computed only on request.

        It uses the values of the step and no further model evaluation.

        Args:
            problem: the equation to integrate.
            x: (B, ...) at t, as ``step`` received it.
            t: start of the step.
            s: its end.
            before: the state that ``step`` received.
            after: the state that it returned.

        Returns:
            An estimate of this step's error or, in a method that corrects later, of the one before;
            None when there is none.
        """
        return None

    def resolve(
        self,
        problem: Any,
        shape: Sequence[int],
        grid: str | Tensor | Sequence[float] | None = None,
        steps: int | None = None,
    ) -> tuple[Solver, Tensor]:
        """The solver and the times of a run: this one on its own grid, unless it chooses among others.

        Args:
            problem: the equation to integrate.
            shape: shape of one sample.
            grid: a name in ``GRIDS``, the times themselves, or None for its own.
            steps: number of intervals of a named grid.
        """
        return self, make_grid(self.grid if grid is None else grid, problem, steps)

    def on_grid(self) -> Solver:
        """The solver for a caller that evaluates the model at the times of the grid, the same for all samples."""
        return self

    def scales(self, state: Any, batch: int) -> Tensor | None:
        """The scale of the data for which each sample ran, float64 (batch,); None of a solver that looks for none."""
        return None

    def init(self, problem: Any, times: Tensor) -> Any:
        """The state before the first step; None for a solver without memory.

        Args:
            problem: the equation to integrate.
            times: the whole grid, float64 (steps + 1,).
        """
        return None

    @abstractmethod
    def step(
        self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """Move x from t towards s.

        Args:
            problem: one of the types in ``needs``.
            x: (B, ...) at t.
            t: 0-d float64 on the CPU.
            s: the next time of the grid, like t.
            state: from ``init`` or the last step.
            noise: N(0, I) increments, for solvers that use them.

        Returns:
            x at the time reached, the time reached (s itself for a fixed-step solver), the new state.
        """
