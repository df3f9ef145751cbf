r"""Stage 1: the best of several families of solvers and grids, by trial on a few initial noise samples.

Three rounds. A few solvers of different kinds try every grid; then every solver tries the best grids; then the best
pairs are compared on all samples. The results are starting points of the fits, so ties do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.tuning.data_scale import ScaledNoise, for_scale
from sde_diffusion.tuning.grid_families import spaced
from solvers import SOLVERS, Solver
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.data_units import InDataUnits
from solvers.grids import rho_min

GRIDS = ("power-1.5", "power-2", "power-2.5", "power-3", "angle", "angle-0.5", "sine", "karras")
FACTORS = (0.25, 1.0, 3.0, 8.0)

_FIRST = (
    ExponentialAdams(2, "data", "time", corrector=True),
    ExponentialAdams(3, "noise", "rho"),
    ExponentialAdams(2, "velocity", "time", corrector=True),
)
_ALL = (
    *(
        ExponentialAdams(order, form, variable, corrector, lower_order_final=lower)
        for form, variable in (
            *(("data", v) for v in ("lambda", "angle", "time")),
            *(("noise", v) for v in ("rho", "time")),
            *(("velocity", v) for v in ("angle", "time")),
        )
        for order, corrector, lower in ((2, False, False), (2, True, False), (3, False, False), (3, True, True))
    ),
    SOLVERS["ipndm"],
)


class Start(NamedTuple):
    """A solver on a grid, with its error."""

    solver: Solver
    times: Tensor
    error: float


def search(
    sde: SDE,
    steps: int,
    few: Callable[[Solver, Tensor], float],
    all_: Callable[[Solver, Tensor], float],
    keep: int = 2,
    going: Callable[[], bool] = lambda: True,
    scale: float = 1.0,
) -> list[Start]:
    """The best pairs of solver and grid.

    Args:
        sde: the process.
        steps: number of evaluations, one for each step of the grid.
        few: error of a solver on a grid, on few samples.
        all_: the same on all samples.
        keep: number of pairs.
        going: returns whether there is time for another trial; called before every trial but the first of a round.
        scale: of the data, which noise levels are in proportion to.
    """
    low = rho_min(steps)
    noise = ScaledNoise(sde, scale)
    grids = [spaced(noise, kind, steps, min(low * factor, 1.0)) for kind, factor in product(GRIDS, FACTORS)]
    if steps == 1:
        grids = grids[:1]

    def best(pairs: Iterable[tuple[Solver, Tensor]], error: Callable[[Solver, Tensor], float], n: int) -> list[Start]:
        tried: list[Start] = []
        for plain, times in pairs:
            if tried and not going():
                break
            solver = plain if isinstance(plain, InDataUnits) else for_scale(plain, scale)
            tried.append(Start(solver, times, error(solver, times)))
        return sorted(tried, key=lambda start: start.error)[:n]

    by_grid: list[Start] = []
    for times in grids:
        if by_grid and not going():
            break
        by_grid += best(((solver, times) for solver in _FIRST), few, 1)
    chosen = [start.times for start in sorted(by_grid, key=lambda start: start.error)[:4]]
    pairs = best(product(_ALL, chosen), few, 8)
    return best(((start.solver, start.times) for start in pairs), all_, keep)
