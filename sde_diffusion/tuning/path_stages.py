"""The stages of tuning within a time limit, where the path of the reference solution is known.

Times come from the path itself, without network evaluations (``tuning.path_times``), and from trials of solvers and
grids. Rows fitted to the path (``tuning.row_fit``) cost one evaluation for each step and sample, so that they are made
for all of these and for the default, or for few of them where the network is slow. The rest of the time goes to least
squares on all coefficients (``tuning.gradients``, or by differences): of the best table on few samples and then on
more, and of the next ones where time is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.tuning.candidates import Found, Tried, error_of, fit_in_batches, fit_table
from sde_diffusion.tuning.data_scale import for_scale
from sde_diffusion.tuning.default_pf_ode import default_table
from sde_diffusion.tuning.effort import Clock, iteration
from sde_diffusion.tuning.gradients.adjoint import gradients_of
from sde_diffusion.tuning.gradients.projected_fit import fit_projected
from sde_diffusion.tuning.grid_search import search
from sde_diffusion.tuning.row_fit import fitted_rows
from sde_diffusion.tuning.task import Task
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.compile import compile_table
from solvers.fitted.table import Table

_POWERS = (1.5, 3.0, 6.0)  # of the errors whose sum the times minimise
_PLAIN = ExponentialAdams(2, variable="time", corrector=True)  # whose rows are changed to follow the path
_PAIRS = 3  # of solver and grid whose rows are fitted to the path
_TRIALS = 24  # of solvers and grids; with time for fewer there are none
_FEWEST = 8  # samples that rows are fitted to
_MANY_BASES, _MANY = 8, 64  # bases and samples; with time for fewer there are fewer bases
_TABLES = 4  # beside the default that are fitted to all samples
_TURNS, _LEAST_BATCH = 6, 6  # batches that derivatives are likely to be found for, and the fewest samples of one
_BATCHES = 4  # of all samples
_WHOLE = 3  # iterations on all samples that follow if there is time for so many
_MOST_FIT = 2**19  # entries of their samples
_ITERATIONS = 48


class _Base(NamedTuple):
    """A table to start from, and the mean that its first row takes, if any."""

    table: Table
    mean: Tensor | None = None


class _Followed(NamedTuple):
    """A table with rows that follow the path, and its error on the samples of the comparison."""

    base: _Base
    error: float


def fit_to_path(task: Task, default: Table, scale: float, steps: int, found: Found, clock: Clock) -> None:
    """Offer the tables that are found within a time limit.

    Args:
        task: the problem, with the path of its reference solutions.
        default: the table of the default solver.
        scale: of the data.
        steps: evaluations of a solver.
        found: receives them.
        clock: the limit.
    """
    fit, tell = task.fit, found.reporter.tell
    call = task.effort.evaluation * task.model.cost
    tell(0.0, "times from the reference solutions")
    rows = clock.part(0.35)
    few_bases = rows.left() < _MANY_BASES * _MANY * steps * call
    powers = _POWERS[:2] if few_bases else _POWERS
    bases = [_Base(default), *(_Base(table) for table in _from_path(task, steps, scale, powers))]
    if task.mean is not None:  # one row more
        longer = (default_table(task, steps + 1, scale), *_from_path(task, steps + 1, scale, powers))
        started = [_Base(table, task.mean) for table in longer]
        bases = [*started, *bases[1:]] if few_bases else [*bases, *started]
    trial = clock.part(0.06)
    if trial.left() > _TRIALS * 8 * steps * call:
        tell(0.05, "families of solvers and grids")
        few, some = partial(task.error, task.part(8)), partial(task.error, task.part(24))
        starts = search(task.model.sde, steps, few, some, _PAIRS, lambda: not trial.over(), scale)
        bases += [_Base(compile_table(start.solver, task.model.sde, steps, start.times)) for start in starts]
        found.offer("search", bases[-len(starts)].table)
    rows = clock.part(0.35)
    n = int(rows.left() / (len(bases) * steps * call))
    n = min(_FEWEST if few_bases else max(n, _FEWEST), len(fit.x1))
    ranked: list[_Followed] = []  # the first is the default
    for k, base in enumerate(bases):
        tell(0.1 + 0.2 * k / len(bases), "rows")
        if len(ranked) < 3 or not rows.over():
            ranked.append(_followed(task, base, n))
    usual, *others = ranked
    # The default stays where few samples rank them and time allows. A few samples do not say whether to start with the
    # mean: the held-out ones do.
    chosen = [usual, *sorted(others, key=_error)[:_TABLES]] if n == len(fit.x1) else _best_of_each_start(ranked)
    tables = [found.tried("rows", *one.base) for one in chosen]
    tell(0.4, "weights of the best")
    for tried in sorted(tables, key=error_of):
        _refined(task, tried, found, clock, call)


def _from_path(task: Task, steps: int, scale: float, powers: Sequence[float]) -> list[Table]:
    """Tables with the times of smallest error on the path."""
    every = {task.path_times.best(steps, power) for power in powers} if steps > 1 else set()
    solver = for_scale(_PLAIN, scale)
    grids = (torch.tensor(times, dtype=torch.float64) for times in sorted(every))
    return [compile_table(solver, task.model.sde, steps, times) for times in grids]


def _followed(task: Task, base: _Base, n: int) -> _Followed:
    """The base with rows that follow the path of n samples."""
    assert task.path is not None
    states = task.path.at(base.table.times)[:, :n]
    table, error = fitted_rows(task.part(n, base.mean), base.table, states)
    return _Followed(base._replace(table=table), error if math.isfinite(error) else math.inf)


def _error(one: _Followed) -> float:
    return one.error


def _best_of_each_start(ranked: Sequence[_Followed]) -> list[_Followed]:
    """The best that starts with the mean and the best that starts with an evaluation."""
    with_mean = [one for one in ranked if one.base.mean is not None]
    without = [one for one in ranked if one.base.mean is None]
    return [min(some, key=_error) for some in (with_mean, without) if some]


def _refined(task: Task, start: Tried, found: Found, clock: Clock, call: float) -> None:
    """Least squares on all coefficients, on batches of samples and, where time allows, on all of them.

    For a loss of features those on the samples themselves come first: they need no differences of features, and what
    is near to the reference solution is near to its features.
    """
    best, fit = start, task.fit
    seconds = iteration(len(start.table.rows), int(start.mean is not None)) * call
    most = min(len(fit.x1), max(_MOST_FIT // fit.x1[0].numel(), _LEAST_BATCH))
    whole = clock.left() > _WHOLE * seconds * most
    for share, seen in ((0.6, None), (1.0, fit.seen)) if whole or fit.seen else ((1.0, None),):
        part = clock.part(share)
        if whole and share == 1.0:
            best = fit_table(best, replace(task.part(most), seen=seen), found, _ITERATIONS, part, seconds, secant=True)
            continue
        part_fit = replace(task.part(most, start.mean), seen=seen)
        gradients = gradients_of(part_fit, start.table) if seen is None and not whole else None
        if gradients is not None:
            run_seconds = call * (len(start.table.rows) - (start.mean is not None))
            best = fit_projected(best, part_fit, found, gradients, part, run_seconds)
        else:
            batch = min(max(int(part.left() / (_TURNS * seconds)), _LEAST_BATCH), -(-most // _BATCHES))
            best = fit_in_batches(best, part_fit, found, batch, part, seconds)
