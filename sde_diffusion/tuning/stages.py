"""The stages of tuning for one NFE: trials of solvers and grids, their times, their coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.storage.tuned_solver import Tuned, gain
from sde_diffusion.tuning.effort import Clock, Reporter, iteration
from sde_diffusion.tuning.feature_loss import FeatureLoss
from sde_diffusion.tuning.fit import (
    Derivatives,
    TableFit,
    TableParameters,
    descend,
    differences,
    mean_table,
    moved_times,
    run,
    sensitivities,
    with_source,
)
from sde_diffusion.tuning.grid_search import Start, search
from sde_diffusion.tuning.row_fit import fitted_rows
from sde_diffusion.tuning.task import Task
from solvers import Solver
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fixed_order_engine, is_high_dim
from solvers.fitted.table import Table
from solvers.planning import plan
from solvers.problem import ReverseProcess
from solvers.solver import sample_rms

FEW = 16
_PAIRS = 8  # of solver and grid whose rows are fitted to the path
_LIKELY, _LEAST_FIT = 4, 4  # least-squares iterations that the time is shared by, and their samples
_TIME_ITERATIONS, _FIRST_ITERATIONS, _ITERATIONS = 4, 3, 8


def tuned_solver(task: Task, nfe: int, reporter: Reporter, clock: Clock) -> Tuned:
    """The best solver for an NFE that the stages find within a time limit."""
    sde, fit, tell = task.model.sde, task.fit, reporter.tell
    timed = clock.seconds is not None
    steps = nfe // task.model.cost
    iteration_seconds = iteration(steps) * task.effort.evaluation * task.model.cost

    def pays(share: float, least: int) -> TableFit:
        """The number of samples for a least-squares iteration in a share of the remaining time."""
        n = len(fit.x1) if not timed else int(share * clock.left() / iteration_seconds)
        return task.part(min(max(n, least), len(fit.x1)))

    found = _Found(task, reporter)
    shape = fit.x1.shape[1:]
    default, times = plan(ReverseProcess(fit.denoise, sde), shape, "pf-ode", steps=steps)
    default = default.on_grid()
    if isinstance(default, MixtureOfTables):
        found.offer("default", default)
        one = mean_table(default, fit)
    else:
        found.offer("default", ProbabilityFlow(is_high_dim(shape)), times)
        one = compile_table(fixed_order_engine(steps), sde, steps, times)
    plain = [found.tried("default, one table", one)]
    if task.path is not None:
        _by_rows(task, plain[0], steps, found, clock, iteration_seconds)
        return _result(task, nfe, found, tell)
    if timed:  # the surest gain first
        tell(0.0, "weights of the default")
        plain[0] = _fit_table(plain[0], pays(0.15, 3), found, 2, clock.part(0.4))
    tell(0.0, "families of solvers and grids")
    few, trial = task.part(FEW if not timed else 8), clock.part(0.2)
    starts = search(
        sde, steps, partial(task.error, few), partial(task.error, fit), _starts(steps), lambda: not trial.over()
    )
    some = pays(0.02, 3) if timed else task.part(max(FEW, len(fit.x1) // 4))
    for k, start in enumerate(starts):
        tell(0.2 + 0.2 * k / len(starts), "times")
        part = clock.part(0.3 / (len(starts) - k))
        first = found.tried("search", compile_table(start.solver, sde, steps, start.times))
        plain.append(first if part.over() else _fit_times(start, first, some, found, part))
    # The quality of a pair shows only after its weights are fitted: each is fitted briefly, and the best fully.
    some = pays(0.04, 3) if timed else some
    for k, table in enumerate(plain):
        tell(0.4 + 0.4 * k / len(plain), "weights")
        plain[k] = _fit_table(table, some, found, _FIRST_ITERATIONS, clock.part(0.5 / (len(plain) - k)))
    tell(0.8, "weights of the best")
    _fit_table(min(plain, key=_error), pays(0.22, 3), found, _ITERATIONS, clock, iteration_seconds)
    return _result(task, nfe, found, tell)


def _result(task: Task, nfe: int, found: _Found, tell: Callable[[float, str], None]) -> Tuned:
    """The best solver, with its errors."""
    tell(1.0, "done")
    seen = task.fit.seen
    return Tuned(
        found.table,
        nfe,
        found.error,
        found.stages["default"],
        dict(found.stages),
        task.teacher_error,
        task.effort.noise_samples,
        task.effort.held_out,
        seen.entry() if isinstance(seen, FeatureLoss) else {"name": "rmse"},
        found.rmse,
        found.default_rmse,
    )


def _by_rows(task: Task, default: _Tried, steps: int, found: _Found, clock: Clock, iteration_seconds: float) -> None:
    """The stages within a time limit, where the path of the reference solution is known.

    Rows fitted to the path cost one evaluation for each step and sample, so that they are made for many pairs of solver
    and grid. The rest of the time goes to least squares on all coefficients of the best.
    """
    sde, fit, tell = task.model.sde, task.fit, found.reporter.tell
    assert task.path is not None

    def followed(base: Table, n: int) -> tuple[Table, float]:
        assert task.path is not None
        return fitted_rows(task.part(n), base, task.path.at(base.times)[:, :n])

    tell(0.0, "families of solvers and grids")
    trial = clock.part(0.15)
    few, some = partial(task.error, task.part(8)), partial(task.error, task.part(24))
    starts = search(sde, steps, few, some, _PAIRS, lambda: not trial.over())
    bases = [default.table, *(compile_table(start.solver, sde, steps, start.times) for start in starts)]
    found.offer("search", bases[1])
    rows = clock.part(0.4)
    n = int(rows.left() / (len(bases) * steps * task.effort.evaluation * task.model.cost))
    n = min(max(n, FEW), len(fit.x1))
    ranked: list[tuple[float, Table]] = []  # the first is the default
    for k, base in enumerate(bases):
        tell(0.1 + 0.2 * k / len(bases), "rows")
        if len(ranked) < 2 or not rows.over():
            table, error = followed(base, n)
            ranked.append((error if math.isfinite(error) else math.inf, table))
    usual, *others = ranked  # ranked on few samples, so the default stays in any case
    best_others = sorted(others, key=lambda pair: pair[0])[:1]
    tables = [found.tried("rows", followed(table, len(fit.x1))[0]) for _, table in (usual, *best_others)]
    tables.sort(key=_error)
    tell(0.4, "weights of the best")
    best = tables[0]
    for share in (0.6, 1.0):  # on few samples first, then on more
        part = clock.part(share)
        n = min(max(int(part.left() / (_LIKELY * iteration_seconds)), _LEAST_FIT), len(fit.x1))
        best = _fit_table(best, task.part(n), found, _ITERATIONS, part, iteration_seconds)


def _starts(steps: int) -> int:
    """Number of fitted pairs: a fit costs the cube of the steps, and with many steps the choice matters less."""
    return 4 if steps <= 10 else 2


class _Tried(NamedTuple):
    """A table with its error on the held-out noise samples."""

    error: float
    table: Table


def _error(tried: _Tried) -> float:
    return tried.error


class _Found:
    """The best solver so far on the held-out noise samples, with the best error of each stage."""

    def __init__(self, task: Task, reporter: Reporter) -> None:
        self.task, self.reporter = task, reporter
        self.error = math.inf
        self.stages: dict[str, float] = {}
        self.table: Solver
        self.rmse = self.default_rmse = math.nan
        seen = task.fit.seen
        self.loss = f", features {seen.extractor.name}" if isinstance(seen, FeatureLoss) else ""

    def offer(self, stage: str, solver: Solver, times: Tensor | None = None) -> float:
        """The held-out error of a table, or of a solver on a grid, which is kept if it is the best so far."""
        held = self.task.held
        x = run(solver, held, times)
        error = float(held.errors(x).mean())
        if not math.isfinite(error):
            error = math.inf
        if error < self.error or not self.stages:
            self.error, self.table = error, with_source(solver, f"sdediff tune, {stage}{self.loss}")
            self.rmse = float(sample_rms(x.double() - held.x0.double()).mean())
            if not self.stages:
                self.default_rmse = self.rmse
            if isinstance(self.table, Table | MixtureOfTables):
                self.table = self.table.on(self.task.model.sde)
        self.stages[stage] = min(error, self.stages.get(stage, math.inf))
        self.reporter.gain = gain(self.error, self.stages["default"])
        return error

    def tried(self, stage: str, table: Table) -> _Tried:
        """The table with its held-out error, which is kept if it is the best so far."""
        return _Tried(self.offer(stage, table), table)


def _fit_times(start: Start, first: _Tried, fit: TableFit, found: _Found, clock: Clock) -> _Tried:
    """The best of a pair before and after its times are fitted."""
    best = first

    def table(q: Tensor) -> Table | None:
        times = moved_times(fit, start.times, q)
        return None if times is None else compile_table(start.solver, fit.sde, len(times) - 1, times)

    def offer(made: Table) -> bool:
        nonlocal best
        best = min(best, found.tried("times", made), key=_error)
        return True

    q = torch.zeros(max(len(start.times) - 2, 0), dtype=torch.float64)
    if len(q):
        _descend(q, table, fit, _TIME_ITERATIONS, offer, lambda: not clock.over())
    return best


def _fit_table(
    start: _Tried, fit: TableFit, found: _Found, iterations: int, clock: Clock, iteration_seconds: float = 0.0
) -> _Tried:
    """The best of a table before and after its coefficients are fitted; iterations without time left are skipped."""
    best, misses = start, 0

    def offer(made: Table) -> bool:
        nonlocal best, misses
        tried = found.tried("weights", made)
        misses = 0 if tried.error < best.error else misses + 1
        best = min(best, tried, key=_error)
        return misses < 2

    size = float(fit.x0.double().square().mean().sqrt())
    parameters = TableParameters.around(start.table, fit, size)
    q = torch.zeros(parameters.total, dtype=torch.float64)
    by_rows = partial(sensitivities, parameters, fit=fit)
    needed = 0.7 * iteration_seconds * len(fit.x1)
    going = lambda: not clock.over() and clock.left() > needed  # noqa: E731
    _descend(q, partial(parameters.table, fit=fit), fit, iterations, offer, going, lambda q: [by_rows(q)])
    return best


def _descend(
    q: Tensor,
    table: Callable[[Tensor], Table | None],
    fit: TableFit,
    iterations: int,
    offer: Callable[[Table], bool],
    going: Callable[[], bool],
    derivatives: Derivatives | None = None,
) -> None:
    """``descend`` on one problem, for tables."""

    def endpoints(q: Tensor) -> list[Tensor] | None:
        made = table(q)
        return None if made is None else [run(made, fit)]

    def accepted(q: Tensor) -> bool:
        made = table(q)
        assert made is not None
        return offer(made)

    descend(q, endpoints, derivatives or differences(endpoints), [fit], [1.0], iterations, accepted, going)
