r"""iPNDM: Adams-Bashforth with the weights of equal steps, on any grid.

In rho = sigma / alpha the flow is d(x / alpha) = eps d rho. The last p values of eps = (x - alpha
D) / sigma are combined with the Adams-Bashforth weights c of p values at equal distances, whatever
the distances are:

    x_s = alpha_s/alpha_t x + (sigma_s - sigma_t alpha_s/alpha_t) sum_j c_j eps_j

    c = (1),   (3, -1) / 2,   (23, -16, 5) / 12,   (55, -59, 37, -9) / 24

(Zhang & Chen 2023, section 3.2; Liu et al. 2022, eq. 9). The weights sum to 1 and give the linear
term right on a grid whose neighbouring steps differ by O(h^2); so on smooth grids the order is 2
for every p >= 2, and it is 4 on grids of equal steps in rho alone. The form with the weights of the
actual steps, of order p, is ``ExponentialAdams(p, form="noise", variable="rho")``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver, rms_of_sum

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for 1 to 4 values at equal distances, newest first."""


@dataclass(frozen=True)
class IPNDM(Solver):
    """Adams-Bashforth in rho with constant weights; the first steps have fewer values.

    Args:
        values: number of values it combines, 1 to 4; 1 is DDIM.

    Raises:
        ValueError: values outside 1 to 4.

    >>> IPNDM(values=4).order
    2
    """

    values: int = 4

    needs = (ReverseProcess,)
    source = "Zhang & Chen 2023, section 3.2"

    def __post_init__(self) -> None:
        if self.values not in (1, 2, 3, 4):
            raise InputError(f"iPNDM combines 1 to 4 values; got values={self.values}")

    @property
    def order(self) -> int:
        """2 on a smooth grid, however many values there are; 1 for one."""
        return min(self.values, 2)

    def step(
        self,
        problem: ReverseProcess,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: tuple[Tensor, ...] | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """One step; the state is the last values of eps, newest first."""
        alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
        alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
        x0 = problem.denoise(x, t)
        eps = x.mul(1 / sigma_t).sub(x0, alpha=alpha_t / sigma_t)
        values = (eps, *(state or ()))[: self.values]
        if state is None:
            return ancestral_step(problem, x, x0, t, s, None), s, values
        ratio = alpha_s / alpha_t
        out = x * ratio
        for c, value in zip(ADAMS[len(values) - 1], values, strict=True):
            out.add_(value, alpha=c * (sigma_s - ratio * sigma_t))
        return out, s, values

    def estimate(
        self,
        problem: ReverseProcess,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        before: tuple[Tensor, ...] | None,
        after: tuple[Tensor, ...],
    ) -> LocalErrorEstimate | None:
        """RMS of the difference to the step with one value less."""
        if before is None or len(after) < 2:
            return None
        alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
        alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
        change = sigma_s - alpha_s / alpha_t * sigma_t
        lower = (*ADAMS[len(after) - 2], 0.0)
        apart = [change * (a - b) for a, b in zip(ADAMS[len(after) - 1], lower, strict=True)]
        return LocalErrorEstimate(t, s, rms_of_sum(apart, after))
