r"""``pf-ode``, the default deterministic solver for a fixed NFE.

For 5 to 8 and 10 evaluations it is a mixture of tables (``solvers.fitted.fitted_tables``) that depends on the noise
level where the path starts and on the number of dimensions, fitted to a training set of models
(``benchmarks/design.py``). For other NFE, for a start below rho = 2, and on a given grid, it is the exponential engine
with data prediction and the corrector. From 7 steps the engine interpolates in the clock of ``solvers.noise_clock``
through five values or, where the values of a sample are rough, through four (``solvers.exponential.variable_order``),
of order 6; with fewer steps through two values. Its grid is clock u^2.5 from the start down to rho = 2 / steps^2;
beyond 20 steps the exponent is 3 - 10 / steps, and rho falls faster.

All coefficients are functions of rho = sigma / alpha in units of the data, so the samples do not depend on the
parametrization of time, and shift and scale with the data. The unit of the data is twice the standard deviation that
the process declares (``ReverseProcess.data_std``), or 1 if it declares none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputTypeError
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.fitted_tables import InUnits, fitted_table
from solvers.grids import GRIDS, make_grid, power
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver

_FEW = ExponentialAdams(2, variable="time", corrector=True)
_MANY = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
_FEW_STEPS = 6
_FINE = 20  # steps from which the grid is denser near the data
_STD = 0.5  # standard deviation of data whose unit is 1


def engine_grid(path: Path, steps: int) -> Tensor:
    """The times of the engine for a number of steps: (steps + 1,) float64."""
    fine = max(steps / _FINE, 1.0)
    return power(path, steps, min(2 / steps**2, 0.5) / math.sqrt(fine), 3 - 0.5 / fine)


def fixed_order_engine(steps: int) -> ExponentialAdams:
    """The engine for a number of steps, at its full order for every sample.

    >>> fixed_order_engine(4).order, fixed_order_engine(20).order
    (3, 6)
    """
    return _FEW if steps <= _FEW_STEPS else _MANY.larger


def _engine(steps: int, unit: float) -> ExponentialAdams | VariableOrder:
    engine = replace(fixed_order_engine(steps), sigma_data=unit)
    return engine if steps <= _FEW_STEPS else VariableOrder(engine)


def _grid(path: Path, steps: int) -> Tensor:
    """The times of the engine; the times of a table also depend on the number of dimensions."""
    return engine_grid(path, steps)


GRIDS["fitted"] = _grid


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """The fitted table for the number of steps, or the exponential engine.

    >>> from solvers import SOLVERS
    >>> SOLVERS["pf-ode"].evaluations(steps=8), SOLVERS["pf-ode"].grid
    (8, 'fitted')
    """

    order = 6
    needs = (ReverseProcess,)
    uses_corrector = True
    grid = "fitted"
    source = "docs/decisions.md, on Zhao et al. 2023 and Shaul et al. 2024"

    def resolve(
        self,
        problem: ReverseProcess,
        shape: Sequence[int],
        grid: str | Tensor | Sequence[float] | None = None,
        steps: int | None = None,
    ) -> tuple[Solver, Tensor]:
        """The table if the grid is its own, otherwise the exponential engine; and the times."""
        unit = 1.0 if problem.data_std is None else problem.data_std / _STD
        path = problem.path if unit == 1 else InUnits(problem.path, unit)
        if grid is None or grid == "fitted":
            times = make_grid("fitted", replace(problem, path=path), steps)
            table = fitted_table(path, len(times) - 1, math.prod(shape))
            if table is not None:
                times = torch.tensor(table.times, dtype=torch.float64, device="cpu")
        else:
            times = make_grid(grid, problem, steps)
            table = fitted_table(path, len(times) - 1, math.prod(shape))
        if table is not None and table.times == tuple(times.tolist()):
            return table, times
        return _engine(len(times) - 1, unit), times

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """Raise an error, since a run takes the steps of the solver that ``resolve`` returns.

        Raises:
            TypeError: always.
        """
        raise InputTypeError(
            "pf-ode takes no steps itself; take those of solvers.planning.plan(problem, shape, 'pf-ode')"
        )
