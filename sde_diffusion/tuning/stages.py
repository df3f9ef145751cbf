"""The stages of tuning for one NFE: trials of solvers and grids, their times, their coefficients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sde_diffusion.storage.tuned_solver import Tuned
from sde_diffusion.tuning.candidates import Found, error_of, fit_table, fit_times
from sde_diffusion.tuning.default_pf_ode import default_candidates
from sde_diffusion.tuning.effort import Clock, iteration
from sde_diffusion.tuning.feature_loss import FeatureLoss
from sde_diffusion.tuning.fit import (
    TableFit,
)
from sde_diffusion.tuning.grid_search import search
from sde_diffusion.tuning.path_stages import fit_to_path
from sde_diffusion.tuning.task import Task
from solvers.fitted.compile import compile_table

FEW = 16
_LIKELY, _LEAST_FIT = 4, 4  # least-squares iterations that the time is shared by, and their samples
_TIME_ITERATIONS, _FIRST_ITERATIONS, _ITERATIONS = 4, 3, 8


def tuned_solver(task: Task, nfe: int, found: Found, clock: Clock) -> Tuned:
    """The best solver for an NFE that the stages find within a time limit."""
    sde, fit, tell = task.model.sde, task.fit, found.reporter.tell
    timed = clock.seconds is not None
    steps = nfe // task.model.cost
    iteration_seconds = iteration(steps) * task.effort.evaluation * task.model.cost

    def pays(share: float, least: int) -> TableFit:
        """The number of samples for a least-squares iteration in a share of the remaining time."""
        n = len(fit.x1) if not timed else int(share * clock.left() / iteration_seconds)
        return task.part(min(max(n, least), len(fit.x1)))

    default, scale = default_candidates(task, steps, found)
    if task.path is not None:
        fit_to_path(task, default, scale, steps, found, clock)
        return result_of(task, nfe, found, tell)
    plain = [found.tried("default, one table", default)]
    if timed:  # the surest gain first
        tell(0.0, "weights of the default")
        plain[0] = fit_table(plain[0], pays(0.15, 3), found, 2, clock.part(0.4))
    tell(0.0, "families of solvers and grids")
    few, trial = task.part(FEW if not timed else 8), clock.part(0.2)
    starts = search(
        sde, steps, partial(task.error, few), partial(task.error, fit), _starts(steps), lambda: not trial.over(), scale
    )
    some = pays(0.02, 3) if timed else task.part(max(FEW, len(fit.x1) // 4))
    for k, start in enumerate(starts):
        tell(0.2 + 0.2 * k / len(starts), "times")
        part = clock.part(0.3 / (len(starts) - k))
        first = found.tried("search", compile_table(start.solver, sde, steps, start.times))
        plain.append(first if part.over() else fit_times(start, first, some, found, part))
    # The quality of a pair shows only after its weights are fitted: each is fitted briefly, and the best fully.
    some = pays(0.04, 3) if timed else some
    for k, table in enumerate(plain):
        tell(0.4 + 0.4 * k / len(plain), "weights")
        plain[k] = fit_table(table, some, found, _FIRST_ITERATIONS, clock.part(0.5 / (len(plain) - k)))
    tell(0.8, "weights of the best")
    fit_table(min(plain, key=error_of), pays(0.22, 3), found, _ITERATIONS, clock, iteration_seconds)
    return result_of(task, nfe, found, tell)


def result_of(task: Task, nfe: int, found: Found, tell: Callable[[float, str], None]) -> Tuned:
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


def _starts(steps: int) -> int:
    """Number of fitted pairs: a fit costs the cube of the steps, and with many steps the choice matters less."""
    return 4 if steps <= 10 else 2
