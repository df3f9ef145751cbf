"""Mixtures of tables for ``benchmarks.design``: gates and coefficients in turns, for one number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.design.kinds import Kinds
from benchmarks.design.training_problems import FEW, TrainingProblem, base, judged
from sde_diffusion.tuning.fit import descend, run
from solvers.fitted.pf_ode import table_of

_SIZE = 0.5  # RMS of the data, for the scale of the weights
_EXACT_TURNS, _EXACT_STEPS = 6, 12  # on the kinds without a network
_ENOUGH = 0.995  # a turn that gains less is the last
_EACH_NETWORK = 3  # where there are gates
_EACH_NETWORK_FEW = 5  # with six steps or fewer
_FEW_STEPS = 6
_TURNS, _STEPS = 2, 6  # gates and numbers in turns, and steps in each
EXPERTS = {
    "strokes": ("strokes",),
    "network": ("digits-6000",),
    "narrow": ("digits, narrow",),
    "smooth": ("digits, wide", "grey", "spectrum, line", "spectrum, flat", "spectrum, steep"),
    "plane": ("plane", "rings"),
    "cloud": ("cloud, 3", "cloud, 8", "cloud, 24"),
}
LARGE_EXPERTS = {
    "drawn": ("strokes-28", "letters-28"),
    "photo": ("grey-28",),
    "narrow": ("strokes, narrow",),
    "wide": ("strokes, wide", "letters, wide"),
    "fields": ("fields, narrow", "fields, wide"),
    "smooth": ("spectrum, 28", "spectrum, 32", "spectrum, 40", "spectrum, colour", "spectrum, equal"),
    "faint": ("spectrum, faint",),
    "cloud": ("cloud, 500",),
}


class GatedDesign:
    """The mixture of tables for one number of steps.

    Args:
        problems: the training set.
        kinds: the names of the problems of each kind.
        starts: entries to start from, the best of them; one with gates gives each kind the mean of its rows.
        most: a model for which no start is within so many times its base does not count for more than that: else
            one for which some pair happens to be nearly exact would decide all.
        search: whether to look for the best pairs for networks; without, their bases are the errors of the best start.
    """

    def __init__(
        self,
        problems: Sequence[TrainingProblem],
        kinds: dict[str, tuple[str, ...]],
        starts: Sequence[dict[str, Any]],
        console: Console,
        most: float = math.inf,
        search: bool = True,
    ) -> None:
        self.problems, self.console, self.steps = problems, console, len(starts[0]["rows"])
        self.kinds = [next(k for k, names in enumerate(kinds.values()) if one.name in names) for one in problems]
        # A network is expensive, and has many dimensions.
        self.fits = [one.part(FEW) if one.network else one.fit for one in problems]
        tables = [table_of(self.fits[0].sde, start) for start in starts]
        lowest = [min(float(one.held.errors(run(table, one.held)).mean()) for table in tables) for one in problems]
        self.bases = [
            max(base(one, self.steps), least / most) if search or not one.network else least
            for one, least in zip(problems, lowest, strict=True)
        ]
        weight = _EACH_NETWORK if self.steps > _FEW_STEPS else _EACH_NETWORK_FEW
        weights = [weight if one.network else 1 for one in problems]
        self.units = [b / math.sqrt(w) for b, w in zip(self.bases, weights, strict=True)]
        self.best = math.inf
        self.starts = [Kinds.mean_table(start, self.fits, self.kinds, _SIZE) for start in starts]
        self.found = self.starts[0]

    def offer(self, stage: str, made: Kinds) -> bool:
        """Compare on the held-out noise samples."""
        ends = [made.endpoints(one.held) for one in self.problems]
        found = judged(f"{self.steps} {stage}", self.problems, ends, self.bases, self.units, self.console)
        if found < self.best:
            self.best, self.found = found, made
        return True

    def fit(self, stage: str, which: Sequence[int], numbers: Sequence[int], iterations: int) -> None:
        """Fit some of the coefficients to some of the problems."""
        fits, units = [self.fits[k] for k in which], [self.units[k] for k in which]
        now, places = self.found, torch.tensor(numbers)

        def full(q: Tensor) -> Tensor:
            return torch.zeros(now.total, dtype=torch.float64).index_copy(0, places, q)

        def endpoints(q: Tensor) -> list[Tensor] | None:
            made = now.at(full(q))
            return [made.endpoints(fit) for fit in fits] if made.ordered else None

        def derivatives(q: Tensor) -> list[tuple[Tensor, Tensor]]:
            found = [now.sensitivities(full(q), fit) for fit in fits]
            return [(x, jacobian[places]) for x, jacobian in found]

        q = torch.zeros(len(numbers), dtype=torch.float64)
        descend(q, endpoints, derivatives, fits, units, iterations, lambda q: self.offer(stage, now.at(full(q))))

    def make(self) -> dict[str, Any]:
        """Gates and numbers in turns; then ``exact``."""
        turns = []
        for turn in range(_TURNS):
            self.best = math.inf
            self.offer_gates(f"gates {turn + 1}", [self.found] if turn else self.starts)
            self.fit("numbers", range(len(self.problems)), range(self.found.total), _STEPS)
            turns.append((self.best, self.found))
        self.best, self.found = min(turns, key=lambda one: one[0])
        return self.exact()

    def offer_gates(self, stage: str, starts: Sequence[Kinds]) -> None:
        """Compare what gates make of some starts."""
        for start in starts:
            self.offer(stage, start.with_gates(self.fits, self.kinds))

    def exact(self) -> dict[str, Any]:
        """Gates, and the rows of the kinds without a network alone, which are cheap; the times stay."""
        networks = {kind for kind, one in zip(self.kinds, self.problems, strict=True) if one.network}
        exact = [k for k, kind in enumerate(self.kinds) if kind not in networks]
        numbers = [n for n, (kind, _, _) in enumerate(self.found.places) if kind >= 0 and kind not in networks]
        for _ in range(_EXACT_TURNS):
            before = self.best
            self.fit("exact kinds", exact, numbers, _EXACT_STEPS)
            if self.best > _ENOUGH * before:
                break
            # Gates belong to what the rows before them do: they are made anew, and kept if that is better.
            self.offer_gates("gates", [self.found])
        return self.found.entry()
