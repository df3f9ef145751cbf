"""The candidates of tuning, their held-out errors, and the least squares that make new ones of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.storage.tuned_solver import gain
from sde_diffusion.tuning.effort import Clock, Reporter
from sde_diffusion.tuning.feature_loss import FeatureLoss
from sde_diffusion.tuning.fit import (
    STALE,
    Derivatives,
    TableFit,
    TableParameters,
    descend,
    differences,
    improved,
    moved_times,
    residuals,
    run,
    secant_updates,
    sensitivities,
    with_mean,
    with_source,
)
from sde_diffusion.tuning.grid_search import Start
from sde_diffusion.tuning.task import Task
from solvers import Solver, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.table import Table
from solvers.problem import ReverseProcess
from solvers.solver import sample_rms

_TIME_ITERATIONS = 4
_SECANTS = 4  # steps of a batch
_MISSES = 3  # batches without a gain, after which the fit ends
_LEAST_DAMPING = 1e-5
_NEEDED = 0.7  # share of the time of an iteration that is needed to begin one


class Tried(NamedTuple):
    """A table with its error on the held-out noise samples, and the mean that its first row takes, if any."""

    error: float
    table: Table
    mean: Tensor | None = None


def error_of(tried: Tried) -> float:
    """Its held-out error."""
    return tried.error


class Found:
    """The best solver so far on the held-out noise samples, with the best error of each stage."""

    def __init__(self, task: Task, reporter: Reporter) -> None:
        self.task, self.reporter = task, reporter
        self.error = math.inf
        self.stages: dict[str, float] = {}
        self.table: Solver
        self.base: Table | MeanStart | None = None  # the best that noise can be added to
        self._base_error = math.inf
        self.rmse = self.default_rmse = math.nan
        seen = task.fit.seen
        self.loss = f", features {seen.extractor.name}" if isinstance(seen, FeatureLoss) else ""

    def offer(self, stage: str, solver: Solver, times: Tensor | None = None) -> float:
        """The held-out error of a table, or of a solver on a grid, which is kept if it is the best so far."""
        return self._offered(stage, solver, run(solver, self.task.held, times))

    def offer_default(self, default: Solver, usual: Solver) -> float:
        """The same of the default, as users get it; ``usual`` is kept if no sample showed wide data."""
        held = self.task.held
        every = torch.arange(len(held.x1))
        process = ReverseProcess(lambda x, t: held.denoise(x, t, every), held.sde)
        made = solve(process, held.x1, solver=default)
        wide = made.scales is not None and bool((made.scales != 1).any())
        return self._offered("default", default if wide else usual, made.x)

    def _offered(self, stage: str, solver: Solver, x: Tensor) -> float:
        held = self.task.held
        error = float(held.errors(x).mean())
        if not math.isfinite(error):
            error = math.inf
        if error < self.error or not self.stages:
            self.error, self.table = error, with_source(solver, f"sdediff tune, {stage}{self.loss}")
            self.rmse = float(sample_rms(x.double() - held.x0.double()).mean())
            if not self.stages:
                self.default_rmse = self.rmse
            if isinstance(self.table, Table | MeanStart | MixtureOfTables):
                self.table = self.table.on(self.task.model.sde)
        if isinstance(solver, Table | MeanStart) and error < self._base_error:
            self._base_error, self.base = error, solver.on(self.task.model.sde)
        self.stages[stage] = min(error, self.stages.get(stage, math.inf))
        self.reporter.gain = gain(self.error, self.stages["default"])
        return error

    def tried(self, stage: str, table: Table, mean: Tensor | None = None) -> Tried:
        """The table with its held-out error, which is kept if it is the best so far."""
        return Tried(self.offer(stage, with_mean(table, mean)), table, mean)


def fit_times(start: Start, first: Tried, fit: TableFit, found: Found, clock: Clock) -> Tried:
    """The best of a pair before and after its times are fitted."""
    best = first

    def table(q: Tensor) -> Table | None:
        times = moved_times(fit, start.times, q)
        return None if times is None else compile_table(start.solver, fit.sde, len(times) - 1, times)

    def offer(made: Table) -> bool:
        nonlocal best
        best = min(best, found.tried("times", made), key=error_of)
        return True

    q = torch.zeros(max(len(start.times) - 2, 0), dtype=torch.float64)
    if len(q):
        _descend(q, table, fit, _TIME_ITERATIONS, offer, lambda fresh: not clock.over())
    return best


def fit_table(
    start: Tried,
    fit: TableFit,
    found: Found,
    iterations: int,
    clock: Clock,
    iteration_seconds: float = 0.0,
    secant: bool = False,
) -> Tried:
    """The best of a table before and after its coefficients are fitted; iterations without time left are skipped.

    Args:
        start: the table.
        fit: the problem; the first row takes the mean of ``start``.
        found: receives the tables.
        iterations: largest number of steps.
        clock: the limit.
        iteration_seconds: of an iteration with new derivatives for one sample.
        secant: whether derivatives are updated between new ones.
    """
    best, misses = start, 0
    fit = replace(fit, mean=start.mean)

    def offer(made: Table) -> bool:
        nonlocal best, misses
        tried = found.tried("weights", made, start.mean)
        misses = 0 if tried.error < best.error else misses + 1
        best = min(best, tried, key=error_of)
        return misses < 2

    size = float(fit.x0.double().square().mean().sqrt())
    parameters = TableParameters.around(start.table, fit, size)
    q = torch.zeros(parameters.total, dtype=torch.float64)
    if parameters.table(q, fit) is None:  # two times that rounding does not tell apart
        return start
    by_rows = partial(sensitivities, parameters, fit=fit)
    needed = _NEEDED * iteration_seconds * len(fit.x1)
    going = lambda fresh: not clock.over() and (not fresh or clock.left() > needed)  # noqa: E731
    _descend(q, partial(parameters.table, fit=fit), fit, iterations, offer, going, lambda q: [by_rows(q)], secant)
    return best


def fit_in_batches(start: Tried, fit: TableFit, found: Found, batch: int, clock: Clock, seconds: float) -> Tried:
    """The best of a table before and after its coefficients are fitted, to more and more samples.

    Derivatives are expensive and trials are not. So the derivatives of one batch of samples are found at a time; those
    of earlier batches are kept, with secant updates, and the steps minimise the error of all batches so far.

    Args:
        start: the table.
        fit: the problem; the first row takes the mean of ``start``.
        found: receives the tables.
        batch: number of samples in a batch.
        clock: the limit.
        seconds: of an iteration with new derivatives for one sample.
    """
    fit = replace(fit, mean=start.mean)
    parts = [fit.section(k, k + batch) for k in range(0, len(fit.x1) - batch + 1, batch)]
    parameters = TableParameters.around(start.table, fit, float(fit.x0.double().square().mean().sqrt()))
    q, best, damping, misses = torch.zeros(parameters.total, dtype=torch.float64), start, 1e-2, 0
    known: dict[int, tuple[Tensor, Tensor]] = {}
    if not parts or parameters.table(q, fit) is None:
        return start

    def at(q: Tensor) -> list[Tensor]:
        table = parameters.table(q, fit)
        return [] if table is None else residuals([parts[k] for k in known], [run(table, parts[k]) for k in known])

    for turn in count():
        if clock.left() < _NEEDED * seconds * batch or misses > max(_MISSES, len(parts)):
            break
        k = turn % len(parts)
        known.pop(k, None)
        known[k] = parts[k].linear(*sensitivities(parameters, q, parts[k]))
        before = q
        for trial in range(_SECANTS):
            step = improved(q, list(known.values()), [1.0] * len(known), at, damping, 2 if trial else 4)
            damping = max(step.damping / (1.5 if trial else 3), _LEAST_DAMPING) if step.ends else step.damping
            if not step.ends:
                break
            known = dict(zip(known, secant_updates(list(known.values()), step, q), strict=True))
            q = step.q
            if step.ratio > STALE or clock.over():
                break
        misses += 1
        made = parameters.table(q, fit)
        if made is not None and q is not before:
            tried = found.tried("weights", made, start.mean)
            if tried.error < best.error:
                best, misses = tried, 0
    return best


def _descend(
    q: Tensor,
    table: Callable[[Tensor], Table | None],
    fit: TableFit,
    iterations: int,
    offer: Callable[[Table], bool],
    going: Callable[[bool], bool],
    derivatives: Derivatives | None = None,
    secant: bool = False,
) -> None:
    """``descend`` on one problem, for tables."""

    def endpoints(q: Tensor) -> list[Tensor] | None:
        made = table(q)
        return None if made is None else [run(made, fit)]

    def accepted(q: Tensor) -> bool:
        made = table(q)
        assert made is not None
        return offer(made)

    derivatives = derivatives or differences(endpoints)
    descend(q, endpoints, derivatives, [fit], [1.0], iterations, accepted, going, secant)
