r"""How many of N evaluations each stage of a cascade has, by the distance to the cascade's own samples at many.

With x(n_1, ..., n_K) the last samples at n_k evaluations of stage k, all splits from one set of initial noise and of
noise of the conditions, a split of n_1 + ... + n_K = N is judged by

    d = RMS of  x(n_1, ..., n_K) - x(M, ..., M),        M = 64,

which holds the errors of all stages, those that a later stage removes excepted. d is not convex in the split: one
evaluation more may land where the error of a stage is larger. All splits are looked at where they are at most 200;
else the search moves 1, 2, 4, ... evaluations from one stage to another as long as d falls. What it finds is compared
with the split that the cascade had before on other noise, and kept where it is the better one there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, permutations

import torch
from torch import Tensor

from sde_diffusion.cascade.drawing import StageModel, draw_stage
from sde_diffusion.cascade.stages import split_nfe
from solvers.errors import InputError, require_whole

MANY = 64
ALL = 200  # splits


@dataclass(frozen=True)
class Split:
    """The evaluations of each stage.

    Attributes:
        nfe: of each stage.
        error: d on held-out noise, in units of the data.
        given: the split in proportion to the evaluations of the cascade.
        given_error: its d on the same noise.
        held_out: number of held-out samples.
        tried: number of splits that the search has looked at.
    """

    nfe: tuple[int, ...]
    error: float
    given: tuple[int, ...]
    given_error: float
    held_out: int
    tried: int


def tuned_split(
    stages: Sequence[StageModel],
    nfe: int,
    *,
    n: int = 128,
    held_out: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[float], None] | None = None,
) -> Split:
    """Find the split of a number of evaluations.

    Args:
        stages: the cascade; their evaluations are the proportion from which the search starts.
        nfe: evaluations of a sample over all stages.
        n: samples of the search.
        held_out: samples of the comparison.
        seed: seed of the noise; the held-out samples have the next one.
        batch_size: samples integrated together.
        progress: called with the share of the work that is done, roughly.

    Raises:
        ValueError: fewer evaluations than stages, or no samples.
    """
    require_whole("n", n, 1, 2**31)
    require_whole("held_out", held_out, 1, 2**31)
    if len(stages) < 2:
        raise InputError("a split needs 2 or more stages")
    given = tuple(split_nfe(nfe, [stage.nfe for stage in stages]))
    search = _Distances(stages, n, seed, batch_size)
    total = math.comb(nfe - 1, len(stages) - 1)

    def distance(split: tuple[int, ...]) -> float:
        value = search(split)
        if progress is not None:
            progress(0.9 * min(1.0, len(search.known) / min(total, ALL)))
        return value

    if total <= ALL:
        best = min([given, *_every(nfe, len(stages))], key=distance)
    else:
        best, before = given, None
        while best != before:
            before = best
            moved = [
                _moved(best, a, b, 2**k)
                for a, b in permutations(range(len(stages)), 2)
                for k in range(nfe.bit_length())
            ]
            best = min([best, *(split for split in moved if min(split) >= 1)], key=distance)
    fresh = _Distances(stages, held_out, seed + 1, batch_size)
    error, given_error = fresh(best), fresh(given)
    if given_error <= error:
        best, error = given, given_error
    if progress is not None:
        progress(1.0)
    return Split(best, error, given, given_error, held_out, len(search.known))


def _every(nfe: int, stages: int) -> Iterator[tuple[int, ...]]:
    """All splits of a number of evaluations.

    >>> list(_every(4, 2)), len(list(_every(9, 3)))
    ([(1, 3), (2, 2), (3, 1)], 28)
    """
    for cuts in combinations(range(1, nfe), stages - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, nfe)))


def _moved(split: tuple[int, ...], giver: int, taker: int, count: int) -> tuple[int, ...]:
    """The split with evaluations of one stage given to another.

    >>> _moved((10, 6), 0, 1, 2)
    (8, 8)
    """
    change = {giver: -count, taker: count}
    return tuple(value + change.get(k, 0) for k, value in enumerate(split))


class _Distances:
    """d of splits on one set of noise; what several splits share is drawn once."""

    def __init__(self, stages: Sequence[StageModel], n: int, seed: int, batch_size: int) -> None:
        self.stages, self.n, self.seed, self.batch_size = stages, n, seed, batch_size
        self.drawn: dict[tuple[int, ...], Tensor] = {}
        self.known: dict[tuple[int, ...], float] = {}
        self.reference = self._samples((MANY,) * len(stages))

    def _samples(self, split: tuple[int, ...]) -> Tensor:
        """The samples of the last of these stages."""
        if split not in self.drawn:
            number = len(split) - 1
            stage = replace(self.stages[number], nfe=split[-1])
            before = self._samples(split[:-1]) if number else None
            self.drawn[split] = draw_stage(stage, number, before, self.n, seed=self.seed, batch_size=self.batch_size)
        return self.drawn[split]

    def __call__(self, split: tuple[int, ...]) -> float:
        """The distance d of a split."""
        if split not in self.known:
            apart = self._samples(split) - self.reference
            self.known[split] = float(torch.sqrt(apart.double().square().mean()))
        return self.known[split]
