r"""The default solver as a candidate of tuning: as users get it, for the scale of the data, and as one table.

``pf-ode`` starts again where the first evaluations show data of a larger scale than 1 (``solvers.fitted.seen_scale``).
The reference solutions show the scale before any run (``tuning.data_scale``); the default for that scale is a second
candidate, and its table the starting point of the fits.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.tuning.candidates import Found
from sde_diffusion.tuning.data_scale import for_scale, scale_of
from sde_diffusion.tuning.fit import TableFit
from sde_diffusion.tuning.task import Task
from solvers import Solver
from solvers.fitted.compile import compile_table
from solvers.fitted.data_units import InDataUnits
from solvers.fitted.dimensions import is_large
from solvers.fitted.engine import fixed_order_engine, noise_of_start
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.fitted.table import Row, Table
from solvers.noise import NoNoise
from solvers.planning import plan
from solvers.problem import ReverseProcess

_SAMPLES, _FEW_SAMPLES = 32, 8  # whose mean is the table, where evaluations are few


def default_candidates(task: Task, steps: int, found: Found) -> tuple[Table, float]:
    """Offer the default, and return its table and the scale of the data."""
    shape = tuple(task.fit.x1.shape[1:])
    process = ReverseProcess(task.fit.denoise, task.model.sde)
    default, _ = plan(process, shape, "pf-ode", steps=steps)
    member = default.on_grid()
    gated = isinstance(member, MixtureOfTables)
    start = noise_of_start(task.model.sde)
    found.offer_default(default, member if gated else _default(shape, start, steps))
    scale = scale_of(task.fit.x0, start)
    if scale != 1:
        chosen = _default(shape, start, steps, scale)
        found.offer(f"default for scale {scale:.3g}", chosen, plan(process, shape, chosen, steps=steps)[1])
    return default_table(task, steps, scale), scale


def _default(shape: tuple[int, ...], start: float, steps: int, scale: float | None = None) -> ProbabilityFlow:
    """The default for samples of a shape, whatever the shape that it will run on."""
    return ProbabilityFlow(is_large(shape, start / (scale or 1.0), steps), scale)


def default_table(task: Task, steps: int, scale: float) -> Table:
    """The default for the scale of the data as one table, with a time limit the mean over a few samples."""
    few = min(max(task.effort.noise_samples // 8, _FEW_SAMPLES), _SAMPLES)
    sde, fit = task.model.sde, task.fit if task.path is None else task.part(few)
    shape = tuple(fit.x1.shape[1:])
    chosen = "pf-ode" if scale == 1 else _default(shape, noise_of_start(sde), steps, scale)
    own, times = plan(ReverseProcess(fit.denoise, sde), shape, chosen, steps=steps)
    member = own.solver if isinstance(own, InDataUnits) else own.on_grid()
    return _as_table(member, fit, sde, steps, times, scale)


def _as_table(member: Solver, fit: TableFit, sde: SDE, steps: int, times: Tensor, scale: float) -> Table:
    if isinstance(member, MixtureOfTables):
        return mean_table(for_scale(member, scale), fit)
    return compile_table(for_scale(fixed_order_engine(steps), scale), sde, steps, times)


def mean_table(table: Solver, fit: TableFit) -> Table:
    """The plain table with the mean over samples of the coefficients of each row of a mixture, or of one in units."""
    rows = [Row(row[0], tuple(row[1:])) for row in (r.mean(0).tolist() for r in _coefficients(table, fit))]
    return Table(tuple(_times(table).tolist()), tuple(rows), table.source)


def _times(solver: Solver) -> Tensor:
    """The times of a solver for its own grid only."""
    assert not isinstance(solver.grid, str)
    return torch.tensor(solver.grid, dtype=torch.float64)


def _coefficients(table: Solver, fit: TableFit) -> list[Tensor]:
    """The coefficients of every row for each sample."""
    every = torch.arange(len(fit.x1))
    process = ReverseProcess(lambda x, t: fit.denoise(x, t, every), fit.sde)
    times = _times(table)
    x, seen, rows = fit.x1, table.init(process, times), []
    for t, s in pairwise(times):
        x, _, seen = table.step(process, x, t, s, seen, NoNoise())
        rows.append(seen.coefficients())
    return rows
