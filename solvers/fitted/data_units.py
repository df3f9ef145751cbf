r"""A solver for data of another scale than the one that its noise levels were chosen for.

Data that are c times as large have the same flow with x, D and sigma multiplied by c, so a solver runs on them as on
data of unit scale from sigma / c: its time grid and its coefficients are those of the path (alpha, sigma / c). Both
are linear in x and D, whose units do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from solvers.errors import InputError
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess, Scales
from solvers.solver import LocalErrorEstimate, Solver


@dataclass(frozen=True)
class ScaledPath:
    """The path of x / c: alpha, and sigma / c.

    >>> import torch
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> float(ScaledPath(straight, 4.0)(torch.tensor(0.5)).sigma)
    0.125
    """

    path: Path
    scale: float

    def __call__(self, t: Tensor) -> Scales:
        """The scales at t."""
        alpha, sigma, dalpha, dsigma = self.path(t)
        return Scales(alpha, sigma / self.scale, dalpha, dsigma / self.scale)


@dataclass(frozen=True)
class InDataUnits(Solver):
    """A deterministic solver with the coefficients of the path of x / scale.

    Args:
        solver: with one evaluation in each step.
        scale: c, the scale of the data.

    Raises:
        ValueError: a scale that is not positive, or a solver that draws noise or chooses its own steps.
    """

    solver: Solver
    scale: float

    needs = (ReverseProcess,)

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise InputError(f"the scale of the data is a positive number; got {self.scale}")
        if self.solver.stochastic or self.solver.adaptive:
            raise InputError(f"{type(self.solver).__name__} is not for fixed steps without noise")

    @property
    def order(self) -> int:
        """The order of the solver."""
        return self.solver.order

    @property
    def source(self) -> str:
        """The source of the solver."""
        return f"{self.solver.source}, for data of scale {self.scale:g}"

    @property
    def uses_corrector(self) -> bool:
        """Whether the solver has a corrector."""
        return self.solver.uses_corrector

    @property
    def owns_last_step(self) -> bool:
        """Whether the solver takes the step to sigma = 0 itself."""
        return self.solver.owns_last_step

    @property
    def data_independent(self) -> bool:
        """Whether the solver's coefficients are the same for every sample."""
        return self.solver.data_independent

    @property
    def grid(self) -> str | tuple[float, ...]:
        """The grid of the solver."""
        return self.solver.grid

    def _scaled(self, problem: ReverseProcess) -> ReverseProcess:
        return replace(problem, path=ScaledPath(problem.path, self.scale))

    def init(self, problem: ReverseProcess, times: Tensor) -> Any:
        """The state of the solver on the path of x / scale."""
        return self.solver.init(self._scaled(problem), times)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """The step of the solver with the coefficients of the path of x / scale."""
        return self.solver.step(self._scaled(problem), x, t, s, state, noise)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: Any, after: Any
    ) -> LocalErrorEstimate | None:
        """The estimate of the solver, in units of x."""
        return self.solver.estimate(self._scaled(problem), x, t, s, before, after)
