r"""A table whose first step uses the mean of the data in place of an evaluation.

At high noise the model knows nothing of x_0 but its mean: D(x, t) = E[x_0 | x_t = x] tends to c = E[x_0] as
rho = sigma / alpha grows. With a known c the first row of a table,

    x_1 = a_0 x_T + b_0 c,

needs no evaluation, so that N evaluations serve a table of N + 1 rows; c counts as the oldest value of later rows. For
Gaussian data of covariance C, c is in error by C (C + rho^2)^-1 (x / alpha - c), of which a_0 can correct the part
along x_T. ``tune`` finds c, and uses it where the held-out error is smaller (``sde_diffusion.tuning.path_stages``).

The first step evaluates the model at the second time of the table, so the grid of this solver leaves that time out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.fitted.table import FixedGridSolver, History, Table
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess


@dataclass(frozen=True)
class MeanStart(FixedGridSolver):
    """A table of N + 1 rows in N evaluations, with the mean of the data as the first predicted x_0.

    Args:
        table: the table; its first row takes the mean for D_0.
        mean: the entries of one sample, in the order of its flattened tensor.
        source: origin of the coefficients.

    Raises:
        ValueError: a table of one row, which would evaluate nothing.

    >>> from solvers.fitted.table import Row
    >>> table = Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,))))
    >>> MeanStart(table, (0.0, 0.0)).evaluations(steps=1)
    1
    """

    table: Table
    mean: tuple[float, ...]
    source: str = "a table from the mean"

    def __post_init__(self) -> None:
        if len(self.table.rows) < 2:
            raise InputError("a table that starts from the mean needs two rows, one of them with an evaluation")

    def on(self, path: Path) -> MeanStart:
        """A copy for this path alone."""
        return replace(self, table=self.table.on(path))

    @property
    def grid(self) -> tuple[float, ...]:
        """The table's times without the second, at which the first step evaluates the model."""
        return (self.table.times[0], *self.table.times[2:])

    def init(self, problem: ReverseProcess, times: Tensor) -> History:
        """The state before the first evaluation.

        Raises:
            ValueError: the grid or the path differs from that of the table.
        """
        if tuple(times.tolist()) != self.grid:
            raise InputError("a table has its own times; leave out the grid")
        return self.table.init(problem, torch.tensor(self.table.times, dtype=torch.float64, device="cpu"))

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, Tensor, History]:
        """One row, and before the first evaluation that of the mean.

        Raises:
            ValueError: samples of another size than the mean.
        """
        if state.number == 0:
            x, state = self.table.advanced(x, self._mean_like(x), state)
            t = torch.tensor(self.table.times[1], dtype=torch.float64, device="cpu")
        x, state = self.table.advanced(x, problem.denoise(x, t), state)
        return x, s, state

    def _mean_like(self, x: Tensor) -> Tensor:
        if prod(x.shape[1:]) != len(self.mean):
            raise InputError(
                f"this solver was made for samples of {len(self.mean)} entries, and these have the shape "
                f"{tuple(x.shape[1:])}; tune for their model"
            )
        return torch.tensor(self.mean, dtype=x.dtype, device=x.device).reshape(x.shape[1:]).expand_as(x)
