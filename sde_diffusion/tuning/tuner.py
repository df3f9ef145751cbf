r"""A solver made for one model and one number of evaluations.

``tune`` looks for the times and weights of a ``solvers.fitted.table.Table`` whose samples are nearest to the
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
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.tuned_solver import Tuned
from sde_diffusion.tuning.fit import (
    Denoise,
    Derivatives,
    Fit,
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
from solvers import Solver
from solvers.errors import InputError, require_whole
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fixed_order_engine, is_high_dim
from solvers.fitted.table import Table
from solvers.planning import plan
from solvers.problem import ReverseProcess

DEFAULT = "pf-ode"
_FEW, _MANY = 16, 1_000_000
_TIME_ITERATIONS, _FIRST_ITERATIONS, _ITERATIONS = 4, 3, 8
# Seeds of tuning lie beyond those of any sampling run, which stay below 2^31.
_FIRST_NOISE = 2**31


Report = Callable[[float, str], None]


def tune(
    model: ScoreModel, nfe: int = 8, *, shape: Iterable[int] | None = None, seed: int = 0, **options: Any
) -> Solver:
    """Find the solver for one model and one number of evaluations.

    Args:
        model: any ScoreModel.
        nfe: network evaluations for each sample; a guided model takes two for each call.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        options: of ``tuned_each``, such as ``noises``, or the condition of the model.

    Raises:
        TypeError: a keyword that is no option and no condition of the network.

    Returns:
        A solver for ``solve(..., solver=tuned, nfe=nfe)`` and ``sample``.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), std=0.2, sde=VPSDE())
    >>> solver = tune(model, nfe=2, shape=(2,), noises=16, held_out=16)
    >>> solver.evaluations(2)
    2
    """
    return tuned_for(model, (nfe,), shape=shape, seed=seed, **options)[nfe].table


def tuned_for(model: ScoreModel, budgets: Sequence[int], **options: Any) -> dict[int, Tuned]:
    """``tuned_each`` by number of evaluations."""
    return {found.nfe: found for found in tuned_each(model, budgets, **options)}


@torch.no_grad()
def tuned_each(
    model: ScoreModel,
    budgets: Sequence[int],
    *,
    shape: Iterable[int] | None = None,
    seed: int = 0,
    noises: int = 128,
    held_out: int = 128,
    batch_size: int = 512,
    report: Report | None = None,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Iterator[Tuned]:
    """Find the solver for one model and each of several numbers of evaluations, with their errors, one by one.

    Args:
        model: any ScoreModel.
        budgets: network evaluations for each sample; a guided model takes two for each call. They share the
            reference solutions.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        noises: number of initial noise samples that times and weights are fitted on.
        held_out: number of other noise samples, which decide.
        batch_size: samples in one call of the network.
        report: called with the completed share of the work and a description.
        condition: per-sample tensors ``(noises + held_out, ...)`` that are passed to the network, by name.
        conditions: the same as keywords.

    Raises:
        ValueError: a budget below one call, too few noise samples, an unknown shape, or conditions of another length.
        FloatingPointError: the model does not return numbers.
    """
    shape = model.shape if shape is None else tuple(shape)
    if shape is None:
        raise InputError("the model does not know the shape of a sample; pass shape=(...), without the batch")
    for nfe in budgets:
        if nfe < model.cost:
            raise InputError(f"nfe is a number of network evaluations, at least {model.cost} for this model; got {nfe}")
    require_whole("batch_size", batch_size, 1, 2**53)
    for name, count in (("noises", noises), ("held_out", held_out)):
        require_whole(name, count, 0, _MANY)
    if noises < _FEW or held_out < 2:
        raise InputError(f"tuning needs at least {_FEW} noise samples and 2 held out; got {noises} and {held_out}")
    given = conditions_for(tuned_each, model, conditions, condition, "tune")
    for name, value in given.items():
        if len(value) != noises + held_out:
            raise InputError(
                f"condition '{name}' has {len(value)} entries for {noises + held_out} noise samples; give one each"
            )
    tell = report or (lambda share, text: None)
    model.eval()
    tell(0.0, "reference solutions")
    task = _Task.prepare(model, shape, seed, noises, held_out, batch_size, given)
    for k, nfe in enumerate(budgets):
        first, width = 0.3 + 0.7 * k / len(budgets), 0.7 / len(budgets)
        yield _tuned(task, nfe, partial(_part, tell, first, width, nfe))


def _part(tell: Report, first: float, width: float, nfe: int, share: float, text: str) -> None:
    tell(first + width * share, f"{nfe} evaluations: {text}")


def _tuned(task: _Task, nfe: int, tell: Report) -> Tuned:
    sde, fit, few = task.model.sde, task.fit, task.part(_FEW)
    some = task.part(max(_FEW, len(fit.x1) // 4))
    steps = nfe // task.model.cost
    found = _Found(task)
    shape = fit.x1.shape[1:]
    default, times = plan(ReverseProcess(fit.denoise, sde), shape, "pf-ode", steps=steps)
    if isinstance(default, MixtureOfTables):
        found.offer("default", default)
        one = mean_table(default, fit)
    else:
        found.offer("default", ProbabilityFlow(is_high_dim(shape)), times)
        one = compile_table(fixed_order_engine(steps), sde, steps, times)
    plain = [found.tried("default, one table", one)]
    tell(0.0, "families of solvers and grids")
    starts = search(sde, steps, partial(task.error, few), partial(task.error, fit), _starts(steps))
    for k, start in enumerate(starts):
        tell(0.2 + 0.2 * k / len(starts), "times")
        first = found.tried("search", compile_table(start.solver, sde, steps, start.times))
        plain.append(_fit_times(start, first, some, found))
    # How well one fits shows only when its weights are fitted too: a little of each, and the best to the end.
    for k, table in enumerate(plain):
        tell(0.4 + 0.4 * k / len(plain), "weights")
        plain[k] = _fit_table(table, some, found, _FIRST_ITERATIONS)
    tell(0.8, "weights of the best")
    _fit_table(min(plain, key=_error), fit, found, _ITERATIONS)
    tell(1.0, "done")
    return Tuned(found.table, nfe, found.error, found.stages["default"], dict(found.stages), task.teacher_error)


def _starts(steps: int) -> int:
    """Number of fitted pairs: a fit costs the cube of the steps, and with many steps the choice matters less."""
    return 4 if steps <= 10 else 2


@dataclass(frozen=True)
class _Task:
    model: ScoreModel
    fit: Fit
    held: Fit
    teacher_error: float
    batch_size: int

    @classmethod
    def prepare(
        cls,
        model: ScoreModel,
        shape: tuple[int, ...],
        seed: int,
        noises: int,
        held_out: int,
        batch_size: int,
        condition: dict[str, Tensor],
    ) -> _Task:
        """Draw the initial noise and compute its endpoints."""
        parameter = next(chain(model.parameters(), model.buffers()), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
        seeds = seeds_of(seed, noises + held_out, _FIRST_NOISE)
        x1 = model.sde.prior((noises + held_out, *shape), seeds=seeds, device=device, dtype=dtype)
        given = {name: value.to(device) for name, value in condition.items()}
        x0, error = converged(model, x1, steps=256, batch_size=batch_size, **given)

        def denoise(first: int) -> Denoise:
            def call(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
                rows = rows.to(device)
                parts = [
                    model.denoise(
                        x[k : k + batch_size],
                        t[k : k + batch_size].to(device),
                        **{n: v[rows[k : k + batch_size] + first] for n, v in given.items()},
                    )
                    for k in range(0, len(x), batch_size)
                ]
                return torch.cat(parts)

            return call

        fit = Fit(denoise(0), model.sde, x1[:noises], x0[:noises])
        held = Fit(denoise(noises), model.sde, x1[noises:], x0[noises:])
        return cls(model, fit, held, error, batch_size)

    def part(self, n: int) -> Fit:
        """The first samples."""
        return Fit(self.fit.denoise, self.fit.sde, self.fit.x1[:n], self.fit.x0[:n])

    def endpoints(self, fit: Fit, solver: Solver, times: Tensor) -> Tensor:
        """The endpoints that a solver reaches from the initial noise of a fit."""
        return run(compile_table(solver, self.model.sde, len(times) - 1, times), fit)

    def error(self, fit: Fit, solver: Solver, times: Tensor) -> float:
        """Mean error; infinite if a sample is."""
        error = float(fit.errors(self.endpoints(fit, solver, times)).mean())
        return error if math.isfinite(error) else math.inf


class _Tried(NamedTuple):
    """A table with its error on the held-out noise samples."""

    error: float
    table: Table


def _error(tried: _Tried) -> float:
    return tried.error


class _Found:
    """The best solver on the held-out noise samples, and the best error of each stage."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.error = math.inf
        self.stages: dict[str, float] = {}
        self.table: Solver

    def offer(self, stage: str, solver: Solver, times: Tensor | None = None) -> float:
        """Compare a table, or a solver on a grid; its error."""
        error = float(self.task.held.errors(run(solver, self.task.held, times)).mean())
        if not math.isfinite(error):
            error = math.inf
        if error < self.error or not self.stages:
            self.error, self.table = error, with_source(solver, f"sdediff tune, {stage}")
            if isinstance(self.table, Table | MixtureOfTables):
                self.table = self.table.on(self.task.model.sde)
        self.stages[stage] = min(error, self.stages.get(stage, math.inf))
        return error

    def tried(self, stage: str, table: Table) -> _Tried:
        """The same, with the table."""
        return _Tried(self.offer(stage, table), table)


def _fit_times(start: Start, first: _Tried, fit: Fit, found: _Found) -> _Tried:
    """The best of a pair and of what its times are moved to."""
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
        _descend(q, table, fit, _TIME_ITERATIONS, offer)
    return best


def _fit_table(start: _Tried, fit: Fit, found: _Found, iterations: int) -> _Tried:
    """The best of a table and of what its numbers are moved to."""
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
    _descend(q, partial(parameters.table, fit=fit), fit, iterations, offer, lambda q: [by_rows(q)])
    return best


def _descend(
    q: Tensor,
    table: Callable[[Tensor], Table | None],
    fit: Fit,
    iterations: int,
    offer: Callable[[Table], bool],
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

    descend(q, endpoints, derivatives or differences(endpoints), [fit], [1.0], iterations, accepted)
