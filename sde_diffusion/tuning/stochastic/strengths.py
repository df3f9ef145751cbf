r"""Strengths of noise for the steps of a table: which are tried, and which are best on drawn samples.

A table of N steps has N - 1 strengths eta_i (``solvers.fitted.noisy_table``). Three rounds:

    1  all steps, or the steps of one range of noise levels (halves and thirds of the steps), with eta = 1/2 or 1, on a
       quarter of the samples;
    2  the best three on all samples;
    3  of the best, the strength of one group of steps after another: a change stays if the distance falls by more than
       its standard error.

Candidates are ranked by the difference of their distance to that without noise, plus its standard error, since noise
is taken only where it is better beyond doubt: weak noise in few steps leaves samples near to those without noise, and
its effect is known far better than that of noise which makes other samples.

All candidates start from the same initial noise and have the same Brownian paths. Up to its first noise a candidate is
the table itself, so these steps are evaluated once for all: a candidate with noise in the last third of the steps
costs a third of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.tuning.fit import TableFit
from sde_diffusion.tuning.stochastic.law_distance import LawDistance
from solvers import Solver, solve
from solvers.brownian_path import BrownianPath
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.noisy_table import renoised
from solvers.fitted.table import Table
from solvers.problem import ReverseProcess

Strengths = tuple[float, ...]

LEVELS = (0.5, 1.0)
_FIRST_SHARE, _KEPT = 4, 3
_GROUPS = 4
_BATCH = 128


def families(n: int) -> list[Strengths]:
    """The strengths of the first round for n noisy steps: in all of them, in the last, the first and the middle ones.

    >>> families(1), len(families(2)), len(families(7)), families(3)[2]
    ([(0.5,), (1.0,)], 6, 10, (0.0, 0.5, 0.5))
    """
    half, third = n - n // 2, max(round(n / 3), 1)
    bands = [(0, n), (n // 2, n), (n - third, n), (0, half), ((n - third) // 2, (n + third) // 2)]
    wanted = [(first, last, eta) for first, last in bands for eta in LEVELS]
    found = [tuple(eta if first <= i < last else 0.0 for i in range(n)) for first, last, eta in wanted]
    return [strengths for strengths in dict.fromkeys(found) if any(strengths)]


def groups(n: int) -> list[tuple[int, int]]:
    """The first and the last step of each group whose strength is changed together.

    >>> groups(2), groups(7)
    ([(0, 1), (1, 2)], [(0, 2), (2, 4), (4, 5), (5, 7)])
    """
    some = min(_GROUPS, n)
    return list(pairwise(round(k * n / some) for k in range(some + 1)))


def changes(strengths: Strengths, first: int, last: int) -> list[Strengths]:
    """The strengths that are one level higher or lower in a group of steps.

    >>> changes((1.0, 0.5), 1, 2), changes((0.5, 0.0), 0, 1)
    ([(1.0, 0.0), (1.0, 1.0)], [(1.0, 0.0)])
    """
    now = max(strengths[first:last])
    near = [eta for eta in (0.0, *LEVELS) if 0 < abs(eta - now) <= LEVELS[0]]
    found = [(*strengths[:first], *[eta] * (last - first), *strengths[last:]) for eta in near]
    return [changed for changed in found if any(changed)]


@dataclass
class Drawn:
    """Samples of one table with many strengths, from the same initial noise: their features.

    Args:
        base: the table.
        fit: the model, with the conditions of as many samples as ``rows``.
        rows: number of samples that conditions repeat after.
        shape: shape of x.
        law: the distance.
        seed: seed of the run.
        first: the first sample, apart from those of other uses.
        order: of ``renoised``.
    """

    base: Table | MeanStart
    fit: TableFit
    rows: int
    shape: tuple[int, ...]
    law: LawDistance
    seed: int
    first: int
    order: int = 2
    known: dict[Strengths, Tensor] = field(default_factory=dict)

    def of(self, wanted: Sequence[Strengths], n: int) -> list[Tensor]:
        """The features (n, d) of the first n samples of each."""
        missing: dict[int, list[Strengths]] = {}
        for strengths in dict.fromkeys(wanted):
            have = len(self.known[strengths]) if strengths in self.known else 0
            if have < n:
                missing.setdefault(have, []).append(strengths)
        for have, some in missing.items():
            parts: list[list[Tensor]] = [[] for _ in some]
            for start in range(have, n, _BATCH):
                ends = self._endpoints(some, start, min(start + _BATCH, n))
                for part, x in zip(parts, ends, strict=True):
                    part.append(self.law.of(x))
            for strengths, part in zip(some, parts, strict=True):
                before = [self.known[strengths]] if have else []
                self.known[strengths] = torch.cat([*before, *part])
        return [self.known[strengths][:n] for strengths in wanted]

    def of_solver(self, solver: Solver, n: int) -> Tensor:
        """The features of the first n samples of any solver, from the same initial noise."""
        parts = []
        for start in range(0, n, _BATCH):
            x, process, seeds = self._start(start, min(start + _BATCH, n))
            own = None if not isinstance(solver.grid, str) else len(self.base.grid) - 1
            parts.append(self.law.of(solve(process, x, solver=solver, steps=own, seeds=seeds).x))
        return torch.cat(parts)

    def table(self, strengths: Strengths) -> Solver:
        """The table with these strengths; without any, the table itself."""
        return renoised(self.base, self.fit.sde, strengths, self.order) if any(strengths) else self.base

    def _start(self, first: int, last: int) -> tuple[Tensor, ReverseProcess, Tensor]:
        seeds = seeds_of(self.seed, last - first, self.first + first)
        device, dtype = self.fit.x1.device, self.fit.x1.dtype
        x = self.fit.sde.prior((last - first, *self.shape), seeds=seeds, device=device, dtype=dtype)
        samples = torch.arange(first, last, device="cpu") % self.rows
        return x, ReverseProcess(lambda x, t: self.fit.denoise(x, t, samples), self.fit.sde), seeds

    def _endpoints(self, some: Sequence[Strengths], first: int, last: int) -> list[Tensor]:
        """The endpoints of samples first to last, with the steps before the first noise evaluated once."""
        x, process, seeds = self._start(first, last)
        times = torch.tensor(self.base.grid, dtype=torch.float64, device="cpu")
        grid = times.unbind()
        noise = BrownianPath.along(seeds, process.clock, times)
        state = self.base.init(process, times)
        out: list[Tensor | None] = [None] * len(some)
        begins = [next((i for i, eta in enumerate(strengths) if eta), len(grid)) for strengths in some]
        for i in range(len(grid) - 1):
            if all(done is not None for done in out):
                break
            once = Remembered(process)
            for k, strengths in enumerate(some):
                if begins[k] == i:
                    made = self.table(strengths)
                    y, seen = x, state
                    for j in range(i, len(grid) - 1):
                        here = once.process if j == i else process
                        y, _, seen = made.step(here, y, grid[j], grid[j + 1], seen, noise)
                    out[k] = y
            if any(done is None for done in out):
                x, _, state = self.base.step(once.process, x, grid[i], grid[i + 1], state, noise)
        return [x if done is None else done for done in out]


class Remembered:
    """A process whose model is evaluated once at a state that several steps start from."""

    def __init__(self, process: ReverseProcess) -> None:
        self.value: Tensor | None = None

        def model(x: Tensor, t: Tensor) -> Tensor:
            if self.value is None:
                self.value = process.model(x, t)
            return self.value

        self.process = ReverseProcess(model, process.path)


def best_strengths(drawn: Drawn, n: int, going: Callable[[], bool] = lambda: True) -> Strengths:
    """The strengths with the surest gain over no noise, against the real samples for the choice, on n drawn samples.

    Args:
        drawn: the samples.
        n: their number.
        going: returns whether there is time for the next round.
    """
    law, steps = drawn.law, len(drawn.base.grid) - 2
    few = min(max(n // _FIRST_SHARE, law.least), n)
    kept = _ranked(drawn, families(steps), few)[:_KEPT]
    if not going():
        return kept[0]
    best = _ranked(drawn, kept, n)[0]
    for group in groups(steps):
        for changed in changes(best, *group):
            if not going():
                return best
            a, b = drawn.of([changed, best], n)
            gap = law.difference(a, b)
            if gap.value + gap.standard_error < 0:
                best = changed
                break
    return best


def _ranked(drawn: Drawn, tried: Sequence[Strengths], n: int) -> list[Strengths]:
    """By the difference to no noise plus its standard error: what shares most with no noise is known best."""
    none, *features = drawn.of([(0.0,) * len(tried[0]), *tried], n)
    gaps = [drawn.law.difference(some, none) for some in features]
    order = sorted(range(len(tried)), key=lambda k: gaps[k].value + gaps[k].standard_error)
    return [tried[k] for k in order]
