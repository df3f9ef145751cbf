r"""Derivatives of the endpoints of a table with respect to its parameters, by the adjoint.

The Jacobian J of the endpoint x_N of one sample costs about 5 N^2 / 2 evaluations by differences, since every changed
coefficient needs a run of its own. For one vector v of the size of a sample, the adjoint gives v J with N evaluations
and as many backward passes,

    l_N = v,      l_i = a_i l_{i+1} + (dD_i/dx)' m_i,      m_i = sum_{k >= i} b_ki l_{k+1},

    d/da_i = <l_{i+1}, x_i>,      d/db_ij = <l_{i+1}, D_j>,      d/dt_i = <m_i, dD_i/dt>.

With v = r / ||r|| of a residual r this is what the gradient of the error needs. Random v of unit variance, orthogonal
to r, estimate the rest of J'J (``tuning.gradients.projected_fit``).

A model is differentiated only after its gradients were compared with differences (``gradients_of``). Networks of
others may round their times, or may leave PyTorch on the way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.tuning.fit import DIFFERENCE, TableFit, TableParameters
from solvers.fitted.table import Table

_COMPARED = 4  # samples whose gradients are compared with differences
_STEP, _AGREE = 1e-2, 0.1
_MEMORY = 2**30  # bytes that the backward pass of a batch may keep
_LEAST = 4


class Gradients(NamedTuple):
    """What a model can be differentiated by.

    Attributes:
        times: whether the derivative with respect to time is right as well.
        most: samples whose backward pass through a table fits in memory.
    """

    times: bool
    most: int


class Projections(NamedTuple):
    """Residuals r of samples and rows v J of their Jacobians.

    Attributes:
        residuals: (B, m) float64.
        along: (B, |q|), for v = r / ||r||.
        across: (k, B, |q|), for k random v orthogonal to r.
    """

    residuals: Tensor
    along: Tensor
    across: Tensor


def gradients_of(fit: TableFit, table: Table) -> Gradients | None:
    """How a model can be differentiated on the way of a table; None if it cannot, or if its gradients are wrong.

    With u a random direction and v = D(x + u) - D(x - u), the product of v with v and of u with the gradient of v D
    agree up to the size of u.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(2), torch.tensor([0.04, 1.0]), sde=VPSDE())
    >>> x1 = model.sde.prior((8, 2), seeds=range(8))
    >>> table = Table((1.0, 0.5, 0.0), ((0.5, (0.5,)), (0.0, (1.0,))))
    >>> smooth = TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, model.flow(x1, 1.0, 0.0))
    >>> gradients_of(smooth, table).times
    True
    >>> gradients_of(TableFit(lambda x, t, rows: model.denoise(x, t).detach(), model.sde, x1, x1), table) is None
    True
    """
    few = fit.section(0, _COMPARED)
    at = table.times[len(table.rows) // 2]
    alpha, sigma = (c.to(few.x1) for c in few.sde.marginal(torch.full((1,), at, dtype=torch.float64)))
    n = len(few.x1)
    x = alpha * few.x0.to(few.x1) + sigma * few.x1.flip(0) / few.x1.std().clamp_min(1e-12)
    t, rows = torch.full((n,), at, dtype=torch.float64, device="cpu"), torch.arange(n, device="cpu")
    u = _STEP * x.std() * torch.randn(x.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(x)
    later = few.sde.time(-torch.log(few.rho(t[:1])) - _STEP) - t[:1]
    kept: dict[Any, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        moved = (few.denoise(x + u, t, rows) - few.denoise(x - u, t, rows)).double() / 2
        passed = (few.denoise(x, t + later, rows) - few.denoise(x, t - later, rows)).double() / 2
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            given, when = x.clone().requires_grad_(True), t.clone().requires_grad_(True)
            out = few.denoise(given, when, rows)
            (by_x,) = torch.autograd.grad(out, given, moved.to(out), retain_graph=True)
            (by_t,) = torch.autograd.grad(out, when, passed.to(out), allow_unused=True)
    except RuntimeError:  # PyTorch's, where there is no gradient
        return None
    most = int(_MEMORY / max(sum(kept.values()) / n * len(table.rows), 1))
    if most < _LEAST or not _agree(float((by_x * u).double().sum()), float(moved.square().sum())):
        return None
    by_time = by_t is not None and _agree(float((by_t * later).sum()), float(passed.square().sum()))
    return Gradients(by_time, most)


def _agree(found: float, expected: float) -> bool:
    return math.isfinite(found) and abs(found - expected) <= _AGREE * expected


def projections(
    parameters: TableParameters, q: Tensor, fit: TableFit, across: int, generator: torch.Generator, times: bool = True
) -> Projections:
    """The residuals at q and random rows of their Jacobians.

    Args:
        parameters: of the table.
        q: (|q|,).
        fit: the samples, whose entries are compared.
        across: number of random directions for each sample.
        generator: draws them, on the CPU.
        times: whether the model is differentiated with respect to time; otherwise those columns are 0.
    """
    table = parameters.table(q, fit)
    assert table is not None
    n = len(fit.x1)
    each = (n, *(1,) * (fit.x1.ndim - 1))
    rows = torch.arange(n, device="cpu")
    at = torch.tensor(table.times[:-1], dtype=torch.float64, device="cpu")
    rates = (fit.sde.time(-torch.log(fit.rho(at)) - DIFFERENCE) - at) / DIFFERENCE
    with torch.enable_grad():
        change = torch.zeros(n, parameters.total, dtype=fit.x1.dtype, device=fit.x1.device, requires_grad=True)
        x, first = fit.x1, 0
        values: list[Tensor] = []
        for i, (row, scales) in enumerate(zip(table.rows, parameters.scales, strict=True)):
            t = at[i].expand(n)
            if i > 0 and times:
                t = t + rates[i] * change[:, parameters.weights + i - 1].to(t)
            values.insert(0, fit.predicted(i, x, t, rows))
            moved = x * (row.decay + scales[0] * change[:, first]).reshape(each)
            for k, value in enumerate(values):
                weight: Tensor | float = row.weights[k] if k < len(row.weights) else 0.0
                if k + 1 < len(scales):
                    weight = (weight + scales[k + 1] * change[:, first + k + 1]).reshape(each)
                if isinstance(weight, Tensor) or weight != 0:
                    moved = moved + weight * value
            x, first = moved, first + len(scales)
        residuals = fit.residuals(x.detach())
        along = residuals / residuals.norm(dim=1, keepdim=True).clamp_min(1e-30)
        found = []
        for k in range(1 + across):
            v = along
            if k > 0:
                v = torch.randn(residuals.shape, generator=generator, dtype=torch.float64, device="cpu").to(along)
                v = v - (v * along).sum(1, keepdim=True) * along
            (row_of_j,) = torch.autograd.grad(x, change, v.reshape(x.shape).to(x.dtype), retain_graph=k < across)
            found.append(row_of_j.double())
    return Projections(residuals, found[0], torch.stack(found[1:]) if across else found[0].new_zeros(0, *change.shape))
