"""Settings of the exponential engine for many steps, and factors of the noise levels for many dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console

from benchmarks.design.plain_design import weights_of
from benchmarks.design.training_problems import TrainingProblem, base, error
from sde_diffusion.tuning.fit import (
    run,
)
from sde_diffusion.tuning.grid_families import spaced
from solvers import Solver
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.engine import engine_grid, shift_noise_levels
from solvers.fitted.pf_ode import ProbabilityFlow, scale_noise_levels, table_of


def settings(problems: Sequence[TrainingProblem], steps: int, console: Console, shown: int = 12) -> None:
    """The best settings of the engine for many steps, over all and for each model."""
    engine = partial(ExponentialAdams, variable="time", corrector=True)
    forms: dict[str, Solver] = {f"data {p}": engine(p) for p in (2, 3, 4, 5)}
    forms |= {"data 4 to 5": VariableOrder(engine(5)), "velocity 3": engine(3, "velocity")}
    found = {}
    for (form, solver), power, factor in product(forms.items(), (1.5, 1.75, 2, 2.25, 2.5, 3), (1, 3, 8, 20, 50)):
        low = factor / steps**2
        if not 5e-4 <= low <= 0.2:
            continue
        errors = [error(one.few, solver, spaced(one.fit.sde, f"power-{power:g}", steps, low)) for one in problems]
        found[f"{form} t^{power:g} {factor:g}/n^2"] = errors
    best = [min(column) for column in zip(*found.values(), strict=True)]
    weights = weights_of(problems, steps)

    def score(errors: Sequence[float]) -> float:
        squares = [w * (e / b) ** 2 for w, e, b in zip(weights, errors, best, strict=True)]
        return math.sqrt(sum(squares) / sum(weights))

    for name in sorted(found, key=lambda name: score(found[name]))[:shown]:
        each = " ".join(f"{e / b:.2f}" for e, b in zip(found[name], best, strict=True))
        console.print(f"{steps} {name}: {score(found[name]):.2f} from {each}")
    for one, b, errors in zip(problems, best, zip(*found.values(), strict=True), strict=True):
        console.print(f"{steps} {one.name}: {b:.3g} by {list(found)[errors.index(b)]}")


def larger(
    problems: Sequence[TrainingProblem],
    steps: int,
    entry: dict[str, Any] | None,
    factors: Sequence[float],
    console: Console,
) -> None:
    """Errors of a table, or of the engine, at raised noise levels, over those of the best pair for each model."""
    sde, plain = problems[0].fit.sde, ProbabilityFlow(large=False)
    bases = [base(one, steps) for one in problems]
    networks = sum(one.network for one in problems)
    weights = [(len(problems) - networks) / networks if one.network else 1.0 for one in problems]
    for factor in factors:
        solver = table_of(sde, scale_noise_levels(entry, factor)) if entry else plain
        times = None if entry else shift_noise_levels(sde, engine_grid(sde, steps), factor)
        ends = [run(solver, one.held, times) for one in problems]
        each = [float(one.held.errors(x).mean()) / b for one, x, b in zip(problems, ends, bases, strict=True)]
        rms = math.sqrt(sum(w * e**2 for w, e in zip(weights, each, strict=True)) / sum(weights))
        mean = math.exp(sum(w * math.log(e) for w, e in zip(weights, each, strict=True)) / sum(weights))
        shown = " ".join(f"{e:.2f}" for e in each)
        console.print(f"{steps} x {factor:g}: {rms:.2f} (geometric {mean:.2f}) from {shown}")
