"""One table for all models of the training set, for one number of steps: search, times, then all coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.design.training_problems import TrainingProblem, base, error, judged
from sde_diffusion.tuning.fit import (
    Derivatives,
    TableFit,
    TableParameters,
    descend,
    differences,
    moved_times,
    run,
    sensitivities,
)
from sde_diffusion.tuning.grid_search import Start, search
from solvers import Solver
from solvers.fitted.compile import compile_table
from solvers.fitted.table import Table

_NETWORK_WEIGHT = 5
_NETWORK_WEIGHT_FEW = 12  # with five steps or fewer
_SIZE = 0.5  # RMS of the data, for the scale of the weights


def weights_of(problems: Sequence[TrainingProblem], steps: int) -> list[float]:
    """Weight of each model."""
    networks = sum(one.network for one in problems)
    weight = _NETWORK_WEIGHT if steps > 5 else _NETWORK_WEIGHT_FEW
    return [weight / networks if one.network else 1.0 for one in problems]


class Design:
    """The table for one number of steps."""

    def __init__(self, problems: Sequence[TrainingProblem], steps: int, console: Console) -> None:
        self.problems, self.steps, self.console = problems, steps, console
        self.fits = [one.fit for one in problems]
        self.bases = [base(one, steps) for one in problems]
        # A base that is smaller by sqrt(w) counts w times in a sum of squares.
        weights = weights_of(problems, steps)
        self.units = [b / math.sqrt(w) for b, w in zip(self.bases, weights, strict=True)]
        self.best = math.inf
        self.table: Table

    def offer(self, stage: str, table: Table) -> bool:
        """Compare on the held-out noise samples."""
        ends = [run(table, one.held) for one in self.problems]
        found = judged(f"{self.steps} {stage}", self.problems, ends, self.bases, self.units, self.console)
        if found < self.best:
            self.best, self.table = found, table
        return True

    def starts(self) -> list[Start]:
        """The best pairs for all."""

        def joint(which: Sequence[tuple[TableFit, float]]) -> Callable[[Solver, Tensor], float]:
            return lambda solver, times: math.sqrt(
                sum((error(fit, solver, times) / b) ** 2 for fit, b in which) / len(which)
            )

        fits = ([one.few for one in self.problems], self.fits)
        few, all_ = (list(zip(which, self.units, strict=True)) for which in fits)
        return search(self.fits[0].sde, self.steps, joint(few), joint(all_), 3)

    def descend(
        self, stage: str, q: Tensor, table: Callable[[Tensor], Table | None], by_rows: Derivatives | None, n: int
    ) -> None:
        """Fit numbers."""

        def endpoints(q: Tensor) -> list[Tensor] | None:
            made = table(q)
            return None if made is None else [run(made, fit) for fit in self.fits]

        def accepted(q: Tensor) -> bool:
            made = table(q)
            return made is not None and self.offer(stage, made)

        descend(q, endpoints, by_rows or differences(endpoints), self.fits, self.units, n, accepted)

    def make(self) -> Table:
        """Search, times, weights."""
        sde = self.fits[0].sde
        for start in self.starts():
            self.offer("search", compile_table(start.solver, sde, self.steps, start.times))

            def moved(q: Tensor, start: Start = start) -> Table | None:
                times = moved_times(self.fits[0], start.times, q)
                return None if times is None else compile_table(start.solver, sde, self.steps, times)

            if self.steps > 2:
                self.descend("times", torch.zeros(self.steps - 1, dtype=torch.float64), moved, None, 5)
        numbers = TableParameters.around(self.table, self.fits[0], _SIZE)
        self.descend(
            "weights",
            torch.zeros(numbers.total, dtype=torch.float64),
            partial(numbers.table, fit=self.fits[0]),
            lambda q: [sensitivities(numbers, q, fit) for fit in self.fits],
            12,
        )
        return self.table
