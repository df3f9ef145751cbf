"""Independence of a sample from the rest of its batch and from other runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import Tensor

from sde_diffusion.verify.result import Check
from sde_diffusion.verify.targets import mixture, process, start
from solvers import Solver, make_grid, steps
from solvers.brownian_path import BrownianPath
from solvers.noise import Noise

_NFE = 12
_SAMPLE = 5
_ROUNDING = 1e-12
# What a shared error norm may move a sample by, relative to its size, at the default tolerances.
_COUPLED = 1e-2


class _Recording:
    """Brownian paths that keep the noise handed to one sample, also when the batch shrinks."""

    def __init__(self, path: Noise, rows: Tensor, kept: list[Tensor]) -> None:
        self.path, self.index, self.kept = path, rows, kept

    def _keep(self, xi: Tensor) -> Tensor:
        self.kept.extend(xi[self.index == _SAMPLE].clone())
        return xi

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self._keep(self.path.increment(x, t, s))

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        return self._keep(self.path.independent(x, t, k))

    def rows(self, index: Tensor) -> _Recording:
        return _Recording(self.path.rows(index), self.index[index.cpu()], self.kept)


def batch(solver: Solver) -> Check | None:
    """Sample 5 alone, among 7 and among 64: bit-equal noise, and one result to rounding."""
    problem, x = process(mixture(), solver), start(64)
    times = make_grid(solver.grid, problem, 2 if solver.adaptive else solver.steps_for(_NFE))
    ends, increments, counts = [], [], []
    for rows in (torch.tensor([_SAMPLE]), torch.arange(7), torch.arange(64)):
        kept: list[Tensor] = []
        noise = _Recording(BrownianPath(rows, problem.clock, 26), rows, kept)
        for step in steps(problem, x[rows], times, solver, noise):
            out = step
        own = int((rows == _SAMPLE).nonzero())
        ends.append(out.x[own])
        counts.append(int(out.nfe[own]))
        increments.append(torch.stack(kept) if kept else torch.zeros(0))
    apart = max(float((end - ends[0]).abs().max()) for end in ends)
    equal = all(torch.equal(noise, increments[0]) for noise in increments)
    if not solver.batch_independent:
        return Check(
            "batch",
            equal and apart <= _COUPLED * _size(ends[0]),
            "declared: one error norm for the batch; noise bit-equal, result to 0.01",
            f"noise {'equal' if equal else 'differs'}, result differs by {apart:.0e}, evaluations {counts}",
            {"difference": apart, "noise_equal": float(equal), "evaluations": counts},
        )
    return Check(
        "batch",
        equal and apart <= _ROUNDING * _size(ends[0]) and len(set(counts)) == 1,
        "alone = in 7 = in 64: noise bit-equal, result to 1e-12, equal evaluations",
        f"noise {'equal' if equal else 'differs'}, result differs by {apart:.0e}, evaluations {counts}",
        {"difference": apart, "noise_equal": float(equal), "evaluations": counts},
    )


def reuse(solver: Solver) -> Check | None:
    """One solver object: a second run, and two runs taking turns, give bit-equal results."""
    problem, batches = process(mixture(), solver), (start(16)[:4], start(16)[4:12])
    times = make_grid(solver.grid, problem, 2 if solver.adaptive else solver.steps_for(_NFE))

    def begin(x: Tensor) -> Iterator[Tensor]:
        noise = BrownianPath(torch.arange(len(x)), problem.clock, 26)
        return (step.x for step in steps(problem, x, times, solver, noise))

    alone = [list(begin(x))[-1] for x in batches]
    second = torch.equal(list(begin(batches[0]))[-1], alone[0])
    turns = list(zip_longest(*map(begin, batches)))
    last = [[x for x in run if x is not None][-1] for run in zip(*turns, strict=True)]
    in_turn = all(torch.equal(a, b) for a, b in zip(alone, last, strict=True))
    return Check(
        "reuse",
        second and in_turn,
        "bit-equal",
        f"second run {'equal' if second else 'differs'}, runs in turn {'equal' if in_turn else 'differ'}",
        {"second_run_equal": float(second), "runs_in_turn_equal": float(in_turn)},
    )


def _size(x: Tensor) -> float:
    return max(1.0, float(x.abs().max()))
