r"""Coefficients of a table from the path of the reference solution, row by row.

With x_i the state of the table, and x*_{i+1} that of the reference solution from the same noise at the next time, row i
is changed by the delta of least squares

    sum_b w_b || x*_{i+1} - row_i(x_i, D_i, D_{i-1}, ...) - sum_k delta_k F_k ||^2,

    F = x_i, D_i, D_i - D_{i-1}, D_i - 2 D_{i-1} + D_{i-2}, ...

with columns of unit RMS and a ridge towards no change. The next row starts where the changed row ends, so it corrects
what was left. This costs one evaluation per step and sample, where a Gauss-Newton step on all coefficients costs
twenty or more; it gives a starting point for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sde_diffusion.tuning.fit import TableFit
from solvers.fitted.table import Row, Table
from solvers.solver import sample_rms

_RIDGE = 1e-3
_BAND = 4
_PASSES = 2


def fitted_rows(fit: TableFit, base: Table, path: Tensor) -> tuple[Table, float]:
    """The table with the times of another, and rows that follow the reference solution; and its error on the samples.

    Args:
        fit: the initial noise, its endpoints and the model.
        base: the table to start from.
        path: (N + 1, B, ...) the states of the reference solution at its times.
    """
    x, rows = fit.x1, []
    values: list[Tensor] = []
    samples = torch.arange(len(x), device="cpu")
    last = len(base.rows) - 1
    for i, row in enumerate(base.rows):
        t = torch.full((len(x),), base.times[i], dtype=torch.float64)
        values.insert(0, fit.predicted(i, x, t, samples))
        target = fit.x0 if i == last else path[i + 1]
        made = _regressed(x, values, row, target.to(x.dtype))
        rows.append(made)
        x = _applied(x, values, made)
    return replace(base, rows=tuple(rows), source="sde_diffusion.tune"), float(fit.errors(x).mean())


def _applied(x: Tensor, values: Sequence[Tensor], row: Row) -> Tensor:
    out = x * row.decay
    for value, weight in zip(values, row.weights, strict=False):
        out.add_(value, alpha=weight)
    return out


def _regressed(x: Tensor, values: Sequence[Tensor], row: Row, target: Tensor) -> Row:
    """The row that takes x nearest to a target."""
    band = min(len(values), _BAND)
    columns = [x, *(sum_of(values, differences(k)) for k in range(band))]
    sizes = [max(float(c.double().square().mean().sqrt()), 1e-30) for c in columns]
    f = torch.stack([c.double().flatten(1) / s for c, s in zip(columns, sizes, strict=True)])
    r = (target - _applied(x, values, row)).double().flatten(1)
    delta, left = torch.zeros(len(columns), dtype=torch.float64, device=x.device), r
    for _ in range(_PASSES):
        errors = sample_rms(left)
        weight = 1 / errors.clamp_min(float(errors.median()) / 10).clamp_min(1e-12)
        weight = weight / weight.mean()
        scaled = f * weight[:, None]
        a = torch.einsum("kbd,lbd->kl", scaled, f) / r.numel()
        g = torch.einsum("kbd,bd->k", scaled, r) / r.numel()
        a += _RIDGE * torch.eye(len(a), dtype=a.dtype, device=a.device)
        delta = torch.linalg.solve(a, g)
        left = r - torch.einsum("k,kbd->bd", delta, f)
    change = [d / s for d, s in zip(delta.tolist(), sizes, strict=True)]
    weights = [*row.weights, *[0.0] * (band - len(row.weights))]
    for k in range(band):
        for j, w in enumerate(differences(k)):
            weights[j] += change[1 + k] * w
    return Row(row.decay + change[0], tuple(weights))


def differences(k: int) -> list[int]:
    """The weights of the k-th backward difference, of the newest value first.

    >>> differences(0), differences(2)
    ([1], [1, -2, 1])
    """
    return [(-1) ** j * math.comb(k, j) for j in range(k + 1)]


def sum_of(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of the first values."""
    return torch.stack([w * v for w, v in zip(weights, values, strict=False)]).sum(0)
