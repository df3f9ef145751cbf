"""The stages of tuning within a time limit, where the path of the reference solution is known.

Times come from the path itself, without network evaluations (``tuning.path_times``), and from trials of solvers and
grids. Rows fitted to the path (``tuning.row_fit``) cost one evaluation for each step and sample, so that they are made
for all of these and for the default. The rest of the time goes to least squares on all coefficients: of the best table
on few samples and then on more, and of the next ones where time is left.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from sde_diffusion.tuning.candidates import Found, Tried, error_of, fit_table
from sde_diffusion.tuning.data_scale import for_scale
from sde_diffusion.tuning.effort import Clock
from sde_diffusion.tuning.grid_search import search
from sde_diffusion.tuning.path_times import PathTimes
from sde_diffusion.tuning.row_fit import fitted_rows
from sde_diffusion.tuning.task import Task
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.compile import compile_table
from solvers.fitted.table import Table

_POWERS = (1.5, 3.0, 6.0)  # of the errors whose sum the times minimise
_PLAIN = ExponentialAdams(2, variable="time", corrector=True)  # whose rows are changed to follow the path
_PAIRS = 3  # of solver and grid whose rows are fitted to the path
_FEWEST = 16  # samples that rows are fitted to
_TABLES = 4  # beside the default that are fitted to all samples
_LIKELY, _LEAST_FIT = 2, 4  # least-squares iterations that the time is shared by, and their samples
_MOST_FIT = 2**19  # entries of their samples
_ITERATIONS = 16


def fit_to_path(
    task: Task, default: Tried, scale: float, steps: int, found: Found, clock: Clock, seconds: float
) -> None:
    """Offer the tables that are found within a time limit.

    Args:
        task: the problem, with the path of its reference solutions.
        default: the table of the default solver.
        scale: of the data.
        steps: rows of a table.
        found: receives them.
        clock: the limit.
        seconds: of a least-squares iteration for one sample.
    """
    fit, tell = task.fit, found.reporter.tell
    tell(0.0, "times from the reference solutions")
    bases = [default.table, *_from_path(task, steps, scale)]
    tell(0.05, "families of solvers and grids")
    trial = clock.part(0.06)
    few, some = partial(task.error, task.part(8)), partial(task.error, task.part(24))
    starts = search(task.model.sde, steps, few, some, _PAIRS, lambda: not trial.over(), scale)
    bases += [compile_table(start.solver, task.model.sde, steps, start.times) for start in starts]
    found.offer("search", bases[-len(starts)])
    rows = clock.part(0.35)
    n = int(rows.left() / (len(bases) * steps * task.effort.evaluation * task.model.cost))
    n = min(max(n, _FEWEST), len(fit.x1))
    ranked: list[tuple[float, int, Table]] = []  # the first is the default
    for k, base in enumerate(bases):
        tell(0.1 + 0.2 * k / len(bases), "rows")
        if len(ranked) < 3 or not rows.over():
            table, error = _followed(task, base, n)
            ranked.append((error if math.isfinite(error) else math.inf, k, table))
    usual, *others = ranked  # ranked on few samples, so the default stays in any case
    kept = _TABLES if n == len(fit.x1) else 1
    chosen = [usual, *sorted(others)[:kept]]
    tables = []
    for *_, table in chosen:
        whole = table if n == len(fit.x1) else _followed(task, table, len(fit.x1))[0]
        tables.append(found.tried("rows", whole))
    tell(0.4, "weights of the best")
    for tried in sorted(tables, key=error_of):
        _refined(task, tried, found, clock, seconds)


def _from_path(task: Task, steps: int, scale: float) -> list[Table]:
    """Tables with the times of smallest error on the path."""
    assert task.path is not None
    known = PathTimes.of(task.path, task.model.sde)
    every = {known.best(steps, power) for power in _POWERS} if steps > 1 else set()
    solver = for_scale(_PLAIN, scale)
    grids = (torch.tensor(times, dtype=torch.float64) for times in sorted(every))
    return [compile_table(solver, task.model.sde, steps, times) for times in grids]


def _followed(task: Task, base: Table, n: int) -> tuple[Table, float]:
    """The base with rows that follow the path of n samples, and its error on them."""
    assert task.path is not None
    return fitted_rows(task.part(n), base, task.path.at(base.times)[:, :n])


def _refined(task: Task, start: Tried, found: Found, clock: Clock, seconds: float) -> None:
    """Least squares on all coefficients, on few samples first and then on more."""
    best = start
    most = min(len(task.fit.x1), max(_MOST_FIT // task.fit.x1[0].numel(), _LEAST_FIT))
    for share in (0.6, 1.0):
        part = clock.part(share)
        n = min(max(int(part.left() / (_LIKELY * seconds)), _LEAST_FIT), most)
        best = fit_table(best, task.part(n), found, _ITERATIONS, part, seconds)
