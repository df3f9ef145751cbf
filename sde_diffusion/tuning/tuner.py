r"""A solver made for one model and one number of evaluations.

``tune`` finds the times and weights of a ``solvers.fitted.table.Table`` whose samples are closest to the
reference solution of the model's probability flow, from the same initial noise:

    0  the reference solution of a few hundred initial noise samples, with 384 evaluations for each;
    1  the best pairs of solver and grid among several families, by trial;
    2  their times, by least squares, with the weights that belong to the times;
    3  all coefficients of each of their tables, by least squares, and of the best of them to the end.

The default solver, whose coefficients depend on the sample, takes part itself and as the table of its mean
coefficients. The candidate with the lowest error on held-out noise samples is returned: it is never worse than the
default on them. The result belongs to the model, its condition (a guidance scale, say) and the number of evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.tuned_solver import Tuned, gain
from sde_diffusion.tuning.effort import (
    Clock,
    Effort,
    Progress,
    Reporter,
    bar,
    effort_for,
    iteration,
    seconds_per_evaluation,
)
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
from sde_diffusion.tuning.task import FIRST_NOISE, Task, place, rows_of, work_of
from solvers import Solver
from solvers.conditions import cut
from solvers.errors import InputError, require_whole
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fixed_order_engine, is_high_dim
from solvers.fitted.table import Table
from solvers.planning import plan
from solvers.problem import ReverseProcess

DEFAULT_SOLVER = "pf-ode"
_FEW, _MANY = 16, 1_000_000
_TIME_ITERATIONS, _FIRST_ITERATIONS, _ITERATIONS = 4, 3, 8


def tune(
    model: ScoreModel,
    nfe: int = 8,
    *,
    shape: Iterable[int] | None = None,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool | Callable[[Progress], None] = True,
    **options: Any,
) -> Solver:
    """A solver fitted to one model and one NFE.

    Args:
        model: any ScoreModel.
        nfe: network evaluations for each sample; a guided model takes two for each call.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        minutes: time limit; more time gives a better solver. No limit by default.
        progress: whether a bar is shown in a terminal or notebook; or a function that is called with the ``Progress``.
        options: of ``tuned_each``, such as ``noise_samples``, or the condition of the model.

    Raises:
        TypeError: a keyword that is no option and no condition of the network.

    Returns:
        A solver for ``solve(..., solver=tuned, nfe=nfe)`` and ``sample``; ``save_solver`` writes it to a file.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), std=0.2, sde=VPSDE())
    >>> solver = tune(model, nfe=2, shape=(2,), noise_samples=16, held_out=16)
    >>> solver.evaluations(2)
    2
    """
    return tuned_for(model, (nfe,), shape=shape, seed=seed, minutes=minutes, progress=progress, **options)[nfe].table


def tuned_for(model: ScoreModel, budgets: Sequence[int], **options: Any) -> dict[int, Tuned]:
    """The results of ``tuned_each``, as a dictionary by number of evaluations."""
    return {found.nfe: found for found in tuned_each(model, budgets, **options)}


@torch.no_grad()
def tuned_each(
    model: ScoreModel,
    budgets: Sequence[int],
    *,
    shape: Iterable[int] | None = None,
    seed: int = 0,
    noise_samples: int = 128,
    held_out: int = 128,
    batch_size: int = 512,
    minutes: float | None = None,
    progress: bool | Callable[[Progress], None] = True,
    on_effort: Callable[[Effort], None] | None = None,
    processes: Processes | None = None,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Iterator[Tuned]:
    """Solvers fitted to one model, with their errors: a ``Tuned`` for each NFE, one by one.

    Args:
        model: any ScoreModel.
        budgets: the NFE of each solver; a guided model takes two evaluations for each call. All solvers share the
            reference solutions.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        noise_samples: number of initial noise samples that times and weights are fitted on.
        held_out: number of held-out noise samples, which select the result.
        batch_size: samples in one call of the network.
        minutes: time for all NFE together. The numbers of samples then depend on the speed of the network, and the
            result on the load of the machine.
        progress: whether a bar is shown in a terminal or notebook; or a function that is called with the ``Progress``.
        on_effort: called with the planned ``Effort`` before the work.
        processes: processes that share the work, each with an equal model; all but the first find nothing.
        condition: conditions of the network, by name: tensors ``(noise_samples + held_out, ...)`` with a row
            for each sample, in dicts too; with minutes any number of rows from 8 up, half of them for the fits.
            Anything else is passed on unchanged.
        conditions: conditions as keywords.

    Raises:
        ValueError: an NFE below one call, too few noise samples, an unknown shape, or conditions of another length.
        FloatingPointError: the model does not return numbers.
    """
    refuse_distilled(model, "tune a solver to")
    shape = model.shape if shape is None else tuple(shape)
    if shape is None:
        raise InputError("the model does not know the shape of a sample; pass shape=(...), without the batch")
    for nfe in budgets:
        if nfe < model.cost:
            raise InputError(f"nfe is a number of network evaluations, at least {model.cost} for this model; got {nfe}")
    require_whole("batch_size", batch_size, 1, 2**53)
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes is how long tuning may take, a positive number; got {minutes}")
    for name, count in (("noise_samples", noise_samples), ("held_out", held_out)):
        require_whole(name, count, 0, _MANY)
    if noise_samples < _FEW or held_out < 2:
        raise InputError(
            f"tuning needs at least {_FEW} noise samples and 2 held out; got {noise_samples} and {held_out}"
        )
    given = conditions_for(tuned_each, model, conditions, condition, "tune")
    rows = rows_of(given, None if minutes is not None else noise_samples + held_out)
    settings = (model, budgets, shape, seed, noise_samples, held_out, batch_size, minutes)
    model.eval()
    # Bound while they are whole: a null with a row for each sample is cut together with its condition.
    given = _first(model.bind(given), rows, rows, place(model)[0])
    with Pool(work_of(model, given, rows), processes) as pool:
        if pool is None:
            return
        if isinstance(progress, bool):
            with bar(progress) as shown:
                yield from _each(*settings, shown, on_effort, given, rows, pool)
        else:
            yield from _each(*settings, progress, on_effort, given, rows, pool)


def _each(
    model: ScoreModel,
    budgets: Sequence[int],
    shape: tuple[int, ...],
    seed: int,
    noise_samples: int,
    held_out: int,
    batch_size: int,
    minutes: float | None,
    callback: Callable[[Progress], None] | None,
    on_effort: Callable[[Effort], None] | None,
    given: dict[str, Any],
    rows: int | None,
    pool: Pool,
) -> Iterator[Tuned]:
    clock = Clock(None if minutes is None else 60 * minutes)
    reporter = Reporter(callback, clock)
    device, dtype = place(model)
    x1 = model.sde.prior((32, *shape), seeds=seeds_of(seed, 32, FIRST_NOISE), device=device, dtype=dtype)
    speed = seconds_per_evaluation(model, x1, batch_size, given, rows)
    calls = [nfe // model.cost for nfe in budgets]
    made = effort_for(clock.seconds, speed, calls, noise_samples, held_out, model.cost)
    if rows is not None and minutes is not None:  # as many as there are conditions
        n = min(rows, made.noise_samples + made.held_out)
        made = replace(made, noise_samples=n - n // 2, held_out=n // 2)
        given = _first(given, rows, n, device)
    if on_effort is not None:
        on_effort(made)
    reporter.tell(0.0, "reference solutions")
    task = Task.prepare(model, shape, seed, made, batch_size, given, pool)
    # A solver of n steps takes about n^2 calls for each sample and iteration.
    weights = [n**2 for n in calls]
    first = 0.3
    for k, nfe in enumerate(budgets):
        share = weights[k] / sum(weights[k:])
        width = (1 - first) * share
        reporter.within(first, width, f"{nfe} evaluations: ")
        yield _tuned(task, nfe, reporter, clock.part(share))
        first += width


def _first(given: dict[str, Any], rows: int | None, n: int | None, device: torch.device) -> dict[str, Any]:
    """The conditions of the first n samples, on a device."""
    return given if rows is None or n is None else cut(given, rows, torch.arange(n, device="cpu"), device)


def _tuned(task: Task, nfe: int, reporter: Reporter, clock: Clock) -> Tuned:
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
    if timed:  # the surest gain first
        tell(0.0, "weights of the default")
        plain[0] = _fit_table(plain[0], pays(0.15, 3), found, 2, clock.part(0.4))
    tell(0.0, "families of solvers and grids")
    few, trial = task.part(_FEW if not timed else 8), clock.part(0.2)
    starts = search(
        sde, steps, partial(task.error, few), partial(task.error, fit), _starts(steps), lambda: not trial.over()
    )
    some = pays(0.02, 3) if timed else task.part(max(_FEW, len(fit.x1) // 4))
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
    tell(1.0, "done")
    return Tuned(
        found.table,
        nfe,
        found.error,
        found.stages["default"],
        dict(found.stages),
        task.teacher_error,
        task.effort.noise_samples,
        task.effort.held_out,
    )


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

    def offer(self, stage: str, solver: Solver, times: Tensor | None = None) -> float:
        """The held-out error of a table, or of a solver on a grid, which is kept if it is the best so far."""
        error = float(self.task.held.errors(run(solver, self.task.held, times)).mean())
        if not math.isfinite(error):
            error = math.inf
        if error < self.error or not self.stages:
            self.error, self.table = error, with_source(solver, f"sdediff tune, {stage}")
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
