r"""Gauss-Newton steps on all coefficients of a table with random rows of the Jacobians.

For a batch k of samples with residuals r_b and weights w_b (``tuning.fit``), at parameters q_k,

    g_k = J'W r = sum_b w_b ||r_b|| s_b,        A_k = sum_b w_b ( s_b s_b' + mean_m p_bm p_bm' ),

where s_b is the row of the Jacobian along r_b, which makes g_k exact, and p_bm are rows for random directions
orthogonal to r_b, so that the mean of A_k is J'W J. J changes slowly, so A is the mean over all batches so far, of
which the first has the most random directions. The newest gradients of all batches have the model

    sum_k ( g_k + A (q - q_k) ),

and a damped step from it is taken if it lowers the error of the newest batch.

A sample costs about 4 N evaluations for a step instead of the 5 N^2 / 2 of differences, so that the steps see several
times as many samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.tuning.candidates import Found, Tried
from sde_diffusion.tuning.effort import Clock
from sde_diffusion.tuning.fit import RIDGE, TableFit, TableParameters, run
from sde_diffusion.tuning.gradients.adjoint import Gradients, Projections, projections
from solvers.solver import sample_rms

_FIRST, _ACROSS = 3, 1  # random directions for each sample of the first batch and of others
_TURNS, _LEAST_BATCH, _PARTS = 4, 16, 2  # further batches that the time is shared by; samples; batches of all samples
_DAMPING, _LEAST_DAMPING, _LESS, _MORE, _TRIALS = 1e-2, 1e-4, 3.0, 6.0, 4
_HELD = 2  # held-out runs are at most one in so many
_KEPT = 0.9  # of the weight of older batches in A
_NEEDED = 0.8  # share of the time of a batch that is needed to begin one
_MISSES = 4  # times the batches without a gain, after which the fit ends


def fit_projected(
    start: Tried, fit: TableFit, found: Found, gradients: Gradients, clock: Clock, seconds: float
) -> Tried:
    """The best of a table before and after its coefficients are fitted.

    Args:
        start: the table.
        fit: the problem; the first row takes the mean of ``start``.
        found: receives the tables.
        gradients: of the model.
        clock: the limit.
        seconds: of a run of the table for one sample.
    """
    fit = replace(fit, mean=start.mean)
    able = clock.left() / max(seconds, 1e-9) / (_cost(_FIRST) + _TURNS * _cost(_ACROSS))
    batch = int(min(max(able, _LEAST_BATCH), -(-len(fit.x1) // _PARTS), gradients.most))
    ends = [k * len(fit.x1) // -(-len(fit.x1) // batch) for k in range(-(-len(fit.x1) // batch) + 1)]
    parts = [fit.section(*pair) for pair in pairwise(ends)]
    parameters = TableParameters.around(start.table, fit, float(fit.x0.double().square().mean().sqrt()))
    q, best, damping, misses = torch.zeros(parameters.total, dtype=torch.float64), start, _DAMPING, 0
    known: dict[int, Gradient] = {}
    matrix = PooledMatrix(parameters.total)
    generator = torch.Generator("cpu").manual_seed(0)
    if parameters.table(q, fit) is None:
        return start
    every, waiting = -(-_HELD * len(found.task.held.x1) // int(batch * _cost(_ACROSS))), False

    def offered(best: Tried, misses: int) -> tuple[Tried, int, bool]:
        table = parameters.table(q, fit)
        assert table is not None
        tried = found.tried("weights", table, start.mean)
        return (tried, 0, False) if tried.error < best.error else (best, misses, False)

    for turn in count():
        k, across = turn % len(parts), _ACROSS if turn else _FIRST
        if clock.left() < _NEEDED * _cost(across) * seconds * batch or misses > _MISSES * len(parts):
            break
        rows = projections(parameters, q, parts[k], across, generator, gradients.times)
        if not all(bool(some.isfinite().all()) for some in rows):
            break
        known[k] = Gradient(q, matrix.add(rows))
        now, moved = float(sample_rms(rows.residuals).mean()), None
        for _ in range(_TRIALS):
            tried = step(matrix.mean, list(known.values()), q, damping)
            table = parameters.table(tried, fit)
            if table is not None and float(parts[k].errors(run(table, parts[k])).mean()) < now:
                moved = tried
                break
            damping *= _MORE
        misses += 1
        if moved is not None:
            q, damping, waiting = moved, max(damping / _LESS, _LEAST_DAMPING), True
        if waiting and turn % every == every - 1:
            best, misses, waiting = offered(best, misses)
    return offered(best, misses)[0] if waiting else best


def _cost(across: int) -> float:
    """The runs that a batch costs: forward, backward for each direction, and a trial."""
    return 1 + 1.1 * (1 + across) + 1


class Gradient(NamedTuple):
    """The gradient g of a batch, and the parameters q where it was found."""

    q: Tensor
    g: Tensor


class PooledMatrix:
    """The mean of J'W J over batches, with smaller weights for older ones.

    >>> r = torch.tensor([[3.0, 4.0]]).double()
    >>> rows = Projections(r, torch.tensor([[1.0, 2.0]]).double(), torch.zeros(0, 1, 2))
    >>> matrix = PooledMatrix(2)
    >>> matrix.add(rows).tolist(), matrix.mean.tolist()
    ([2.5, 5.0], [[0.5, 1.0], [1.0, 2.0]])
    """

    def __init__(self, parameters: int) -> None:
        self._sum, self._weight = torch.zeros(parameters, parameters, dtype=torch.float64), 0.0

    @property
    def mean(self) -> Tensor:
        """The mean so far."""
        return self._sum / self._weight

    def add(self, rows: Projections) -> Tensor:
        """Take in a batch, and return its gradient of half the square of the mean error."""
        r, along, across = rows
        errors = sample_rms(r)
        weight = errors.mean() / errors.clamp_min(float(errors.median()) / 10).clamp_min(1e-12) / r.numel()
        a = (along * weight[:, None]).T @ along
        for p in across:
            a = a + (p * weight[:, None]).T @ p / len(across)
        count = len(r) * (1 + len(across))
        self._sum, self._weight = _KEPT * self._sum + count * a.cpu(), _KEPT * self._weight + count
        return ((weight * r.norm(dim=1)) @ along).cpu()


def step(a: Tensor, known: Sequence[Gradient], q: Tensor, damping: float) -> Tensor:
    """The damped minimum of the sum of quadratics, with a ridge towards q = 0.

    >>> at = Gradient(torch.zeros(1), torch.tensor([1.0]))
    >>> round(float(step(torch.tensor([[2.0]]), [at], torch.zeros(1), 0.0)), 3)
    -0.5
    """
    g = torch.stack([one.g + a @ (q - one.q) for one in known]).mean(0)
    ridge = RIDGE * float(a.diagonal().mean()) + 1e-30
    system = a + damping * a.diagonal().diag() + ridge * torch.eye(len(q), dtype=a.dtype)
    return q - torch.linalg.solve(system, g + ridge * q)
