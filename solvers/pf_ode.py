r"""The default: the best fixed-budget deterministic solver of this library, whatever that is at the time.

At present the data form of the exponential engine with two values and the corrector (order 3), on t = u^2.5 down to
rho = 4 / steps^2. Up to 6 steps the polynomial is in lambda, beyond in t. The evidence is in docs/decisions.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solvers.exponential import ExponentialAdams
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Estimate, Solver

_FEW = ExponentialAdams(2, variable="lambda", corrector=True)
_MANY = ExponentialAdams(2, variable="time", corrector=True)


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """The member of the exponential engine that suits the number of steps.

    >>> ProbabilityFlow().member(5).variable, ProbabilityFlow().member(20).variable
    ('lambda', 'time')
    """

    order = 3
    needs = (ReverseProcess,)
    grid = "power"
    source = "docs/decisions.md, on Zhao et al. 2023 and Zhang & Chen 2023"

    def member(self, steps: int) -> ExponentialAdams:
        """The solver that runs a grid of so many steps."""
        return _FEW if steps <= 6 else _MANY

    def init(self, problem: ReverseProcess, times: Tensor) -> Any:
        """The member for this grid, and its state."""
        member = self.member(len(times) - 1)
        return member, member.init(problem, times)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One step of the member."""
        member, inner = state
        x, s, inner = member.step(problem, x, t, s, inner, noise)
        return x, s, (member, inner)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: Any, after: Any
    ) -> Estimate | None:
        """The member's."""
        return before[0].estimate(problem, x, t, s, before[1], after[1])
