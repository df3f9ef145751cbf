r"""Stages 2 and 3: times and weights by least squares on the endpoints of the reference solution.

Both minimise the mean over initial noise of the RMS error of a sample (for several problems the mean square of that,
in units of a base for each), by Levenberg-Marquardt steps on reweighted squares

    sum_b w_b ||r_b||^2,      w_b = 1 / max(||r_b||, m),      m = median_b ||r_b|| / 10,

so that a few samples that end in another mode do not dominate. Derivatives are forward differences, so the model needs
no backward pass (``tuning.gradients`` has those by one). A step of q solves

    (A + lambda diag A + nu I) dq = -(g + nu q),       A = J W J' / n,   g = J W r / n,   nu = 1e-3 tr A / |q|,

where nu regularises the weights towards their theoretical starting values (Frankel et al. 2025 and Kim et al. 2024
found free weights to overfit). The step with the lowest error on held-out noise samples is kept.

Stage 2 moves the times and lets the solver recompute its weights. Stage 3 changes every coefficient of the table. The
derivative of the endpoint with respect to a weight of row i needs evaluations after i only; those of all weights
run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from solvers import Solver, solve
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.table import Row, Table
from solvers.problem import ReverseProcess
from solvers.solver import sample_rms

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, t, rows) -> D; rows are the indices of the samples in x, for their conditions."""

# Fitted columns of a row: the values of the current step and of the three before.
_BAND = 4
DIFFERENCE = 1e-3
RIDGE = 1e-3
STALE = 0.99  # a step with old derivatives that gains less is followed by new ones


@dataclass(frozen=True)
class TableFit:
    """A fitting problem: the initial noise, its endpoints, and the model.

    Attributes:
        denoise: the model.
        sde: its process.
        x1: (B, ...) at t = 1.
        x0: (B, ...) the endpoints of the reference solution.
        seen: maps samples to the values (B, m) that are compared, for example features; None for the entries.
        mean: (...) what the first row of a table takes for D_0, without an evaluation; None to evaluate the model.
    """

    denoise: Denoise
    sde: SDE
    x1: Tensor
    x0: Tensor
    seen: Callable[[Tensor], Tensor] | None = None
    mean: Tensor | None = None

    def predicted(self, row: int, x: Tensor, t: Tensor, samples: Tensor) -> Tensor:
        """The D that a row of a table starts with: of the model, or the mean."""
        return self.denoise(x, t, samples) if row or self.mean is None else self.mean.expand_as(x)

    def section(self, first: int, last: int) -> TableFit:
        """The problem with some of the samples."""
        denoise = lambda x, t, rows: self.denoise(x, t, rows + first)  # noqa: E731
        return replace(self, denoise=denoise, x1=self.x1[first:last], x0=self.x0[first:last])

    @cached_property
    def target(self) -> Tensor:
        """What is compared of the reference solution, (B, m) float64."""
        return self._values(self.x0)

    def residuals(self, x: Tensor) -> Tensor:
        """The compared values of endpoints less those of the reference solution, (B, m) float64."""
        return self._values(x) - self.target

    def errors(self, x: Tensor) -> Tensor:
        """The RMS over the compared values of each sample, (B,) float64."""
        return sample_rms(self.residuals(x))

    def linear(self, x: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (B, m) of endpoints x and their derivatives (|q|, B, m), given those of x, (|q|, B, ...)."""
        values = self._values(x)
        if self.seen is None:
            return values - self.target, jacobian.flatten(2)
        columns = []
        for along in jacobian:
            h = DIFFERENCE / max(float(along.square().mean().sqrt()), 1e-30)
            columns.append((self._values(x.double() + h * along) - values) / h)
        return values - self.target, torch.stack(columns)

    def _values(self, x: Tensor) -> Tensor:
        return x.double().flatten(1) if self.seen is None else self.seen(x).double()

    def rho(self, times: Tensor) -> Tensor:
        """Sigma / alpha."""
        alpha, sigma = self.sde.marginal(times)
        return sigma / alpha


def moved_times(fit: TableFit, times: Tensor, q: Tensor) -> Tensor | None:
    """Times with log rho changed by q, all but the first and the last; None if they are no longer decreasing."""
    rho = fit.rho(times[1:-1]) * torch.exp(q.clamp(-3, 3))
    out = torch.cat([times[:1], fit.sde.time(-torch.log(rho)), times[-1:]])
    return out if bool((out.diff() < -1e-9).all()) else None


@dataclass(frozen=True)
class TableParameters:
    """The parameters q of a table: relative changes of decays and weights, and changes of log rho.

    Attributes:
        base: the table at q = 0.
        scales: for each row, the increments of its decay and weights at q = 1.
    """

    base: Table
    scales: tuple[tuple[float, ...], ...]

    @classmethod
    def around(cls, base: Table, fit: TableFit, size: float) -> TableParameters:
        """Scales in units of each step: the share of x that it replaces, for data of RMS ``size``."""
        alpha, sigma = (c.tolist() for c in fit.sde.marginal(torch.tensor(base.times, dtype=torch.float64)))
        scales = []
        for i in range(len(base.rows)):
            # alpha_s (1 - rho_s / rho_t), finite where alpha_t = 0.
            step = alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]
            x = (sigma[i] ** 2 + (alpha[i] * size) ** 2) ** 0.5
            scales.append((step * size / x, *([step] * min(i + 1, _BAND))))
        return cls(base, tuple(scales))

    @property
    def weights(self) -> int:
        """Number of decays and weights, which precede the times in q."""
        return sum(map(len, self.scales))

    @property
    def total(self) -> int:
        """Number of parameters."""
        return self.weights + len(self.base.rows) - 1

    def table(self, q: Tensor, fit: TableFit) -> Table | None:
        """The table at q; None if its times are no longer decreasing."""
        times = moved_times(fit, torch.tensor(self.base.times, dtype=torch.float64), q[self.weights :])
        if times is None:
            return None
        rows, at = [], 0
        for row, scales in zip(self.base.rows, self.scales, strict=True):
            change = [float(v) * s for v, s in zip(q[at : at + len(scales)], scales, strict=True)]
            at += len(scales)
            kept = max(len(row.weights), len(scales) - 1)
            old = (*row.weights, *[0.0] * (kept - len(row.weights)))
            new = (*change[1:], *[0.0] * (kept + 1 - len(change)))
            rows.append(Row(row.decay + change[0], tuple(a + b for a, b in zip(old, new, strict=True))))
        return Table(tuple(times.tolist()), tuple(rows), "sde_diffusion.tune")


def run(solver: Solver, fit: TableFit, times: Tensor | None = None) -> Tensor:
    """The endpoints of a table, or of a solver on a grid."""
    if not isinstance(solver, Table):
        every = torch.arange(len(fit.x1))
        process = ReverseProcess(lambda x, t: fit.denoise(x, t, every), fit.sde)
        return solve(process, fit.x1, solver=solver, grid=times).x
    x = fit.x1
    values: list[Tensor] = []
    rows = torch.arange(len(x))
    for i, (t, (decay, weights)) in enumerate(zip(solver.times, solver.rows, strict=False)):
        values.insert(0, fit.predicted(i, x, torch.full((len(x),), t, dtype=torch.float64), rows))
        x = x * decay
        for value, weight in zip(values, weights, strict=False):
            x.add_(value, alpha=weight)
    return x


def sensitivities(parameters: TableParameters, q: Tensor, fit: TableFit) -> tuple[Tensor, Tensor]:
    """The endpoints at q and their derivatives: (B, ...) and (|q|, B, ...)."""
    table = parameters.table(q, fit)
    assert table is not None
    shape, n, e = fit.x1.shape, len(table.rows), DIFFERENCE
    rho = fit.rho(torch.tensor(table.times[:-1], dtype=torch.float64))
    shifted = fit.sde.time(-torch.log(rho) - e).tolist()
    every = torch.arange(shape[0])
    # The first entry is the unperturbed run; each other entry has one coefficient changed.
    x = fit.x1[None]
    values: list[Tensor] = []
    order: list[int] = []
    at = 0
    for i, (decay, weights) in enumerate(table.rows):
        t = torch.full((len(x),), table.times[i], dtype=torch.float64)
        if i > 0:
            x, t = torch.cat([x, x[:1]]), torch.cat([t, torch.tensor([shifted[i]], dtype=torch.float64)])
            values = [torch.cat([v, v[:1]]) for v in values]
            order.append(parameters.weights + i - 1)
        many = len(x)
        out = fit.predicted(i, x.reshape(-1, *shape[1:]), t.repeat_interleave(shape[0]), every.repeat(many))
        values = [out.reshape(many, *shape), *values]
        moved = x * decay
        for value, weight in zip(values, weights, strict=False):
            moved.add_(value, alpha=weight)
        scales = parameters.scales[i]
        changed = [moved[:1] + e * s * v[:1] for s, v in zip(scales, (x, *values), strict=False)]
        order += range(at, at + len(scales))
        at += len(scales)
        needed = max((len(row.weights) - k for k, row in enumerate(table.rows[i + 1 :], 1)), default=0)
        needed = max(needed, _BAND - 1) if i + 1 < n else 0
        values = [torch.cat([v, v[:1].expand(len(changed), *shape)]) for v in values[:needed]]
        x = torch.cat([moved, *changed])
    jacobian = torch.empty(parameters.total, *shape, dtype=torch.float64, device=x.device)
    jacobian[order] = (x[1:].double() - x[:1].double()) / e
    return x[0], jacobian


Derivatives = Callable[[Tensor], list[tuple[Tensor, Tensor]]]


def objective(fits: Sequence[TableFit], endpoints: Sequence[Tensor], bases: Sequence[float]) -> float:
    """Root mean square over the problems of mean error / base; infinite where one is not finite."""
    return _rms_ratio([fit.residuals(x) for fit, x in zip(fits, endpoints, strict=True)], bases)


def _rms_ratio(residuals: Sequence[Tensor], bases: Sequence[float]) -> float:
    ratios = [float(sample_rms(r).mean()) / b for r, b in zip(residuals, bases, strict=True)]
    total = math.sqrt(sum(r * r for r in ratios) / len(ratios))
    return total if math.isfinite(total) else math.inf


def descend(
    q: Tensor,
    value: Callable[[Tensor], list[Tensor] | None],
    derivatives: Derivatives,
    fits: Sequence[TableFit],
    bases: Sequence[float],
    iterations: int,
    accepted: Callable[[Tensor], bool],
    going: Callable[[bool], bool] = lambda fresh: True,
    secant: bool = False,
) -> None:
    """Levenberg-Marquardt from q on ``objective``.

    Args:
        q: starting point.
        value: endpoints of every problem at a q, or None.
        derivatives: endpoints of every problem and their derivatives.
        fits: the problems.
        bases: the unit of error of each problem.
        iterations: largest number of steps.
        accepted: called with every q that improves the objective, with ``secant`` with the last before new
            derivatives; returns whether to continue.
        going: returns whether there is time for another iteration, with or without derivatives.
        secant: whether derivatives are updated by the last step (Broyden 1965) as long as that helps.
    """
    damping, waiting = 1e-2, False
    found: list[tuple[Tensor, Tensor]] | None = None
    for _ in range(iterations):
        if found is None and waiting:
            waiting = False
            if not accepted(q):
                return
        fresh = found is None
        if not going(fresh):
            break
        if found is None:
            found = [fit.linear(*pair) for fit, pair in zip(fits, derivatives(q), strict=True)]
        step = improved(q, found, bases, lambda q: residuals(fits, value(q)), damping, 6 if fresh else 2)
        damping = step.damping / 5 if fresh and step.ends else step.damping
        if not step.ends:
            if fresh:
                break
            found = None
            continue
        going_well = secant and step.ratio < (1.0 if fresh else STALE)
        found = secant_updates(found, step, q) if going_well else None
        q, waiting = step.q, secant
        if not secant and not accepted(q):
            return
    if waiting:
        accepted(q)


class Improvement(NamedTuple):
    """A step that lowers the objective: its q, the residuals there, new over old objective, and the damping.

    Without such a step there are no residuals.
    """

    q: Tensor
    ends: list[Tensor]
    ratio: float
    damping: float


def residuals(fits: Sequence[TableFit], endpoints: Sequence[Tensor] | None) -> list[Tensor]:
    """The residuals of every problem; none without endpoints."""
    return [] if endpoints is None else [fit.residuals(x) for fit, x in zip(fits, endpoints, strict=True)]


def improved(
    q: Tensor,
    found: Sequence[tuple[Tensor, Tensor]],
    bases: Sequence[float],
    at: Callable[[Tensor], list[Tensor]],
    damping: float,
    trials: int,
) -> Improvement:
    """A Levenberg-Marquardt step from q.

    Args:
        q: starting point.
        found: residuals of every problem and their derivatives.
        bases: the unit of error of each problem.
        at: the residuals of every problem at a q; none where there is no table.
        damping: lambda of the first trial.
        trials: number of lambdas.
    """
    a, g = _normal_equations(found, bases)
    now, ridge = _rms_ratio([r for r, _ in found], bases), RIDGE * float(a.diagonal().mean())
    for _ in range(trials):
        system = a + damping * a.diagonal().diag() + (ridge + 1e-30) * torch.eye(len(q), dtype=torch.float64)
        tried = q - torch.linalg.solve(system, g + ridge * q)
        ends = at(tried)
        if ends and (then := _rms_ratio(ends, bases)) < now:
            return Improvement(tried, ends, then / now, damping)
        damping *= 6
    return Improvement(q, [], 1.0, damping)


def _normal_equations(found: Sequence[tuple[Tensor, Tensor]], bases: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A and g of all problems, from residuals and their derivatives."""
    total = len(found[0][1])
    a, g = torch.zeros(total, total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    for base, (r, j) in zip(bases, found, strict=True):
        errors = sample_rms(r)
        # The derivative of (mean error / base)^2, written as the derivative of a weighted sum of squares.
        weight = errors.mean() / base**2 / errors.clamp_min(float(errors.median()) / 10).clamp_min(1e-12)
        scaled = j * weight[:, None]
        a += torch.einsum("kbd,lbd->kl", scaled, j).cpu() / r.numel()
        g += torch.einsum("kbd,bd->k", scaled, r).cpu() / r.numel()
    return a, g


def secant_updates(found: Sequence[tuple[Tensor, Tensor]], step: Improvement, q: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Residuals after a step from q, and derivatives with the least change that agrees with it (Broyden 1965).

    >>> found = [(torch.zeros(1, 1), torch.zeros(2, 1, 1))]
    >>> step = Improvement(torch.tensor([0.0, 2.0]), [torch.full((1, 1), 3.0)], 1.0, 0.1)
    >>> secant_updates(found, step, torch.zeros(2))[0][1].flatten().tolist()
    [0.0, 1.5]
    """
    updated = []
    for (before, jacobian), after in zip(found, step.ends, strict=True):
        moved = (step.q - q).to(jacobian)
        missed = after - before - torch.tensordot(moved, jacobian, 1)
        updated.append((after, jacobian + torch.tensordot(moved / (moved @ moved), missed, 0)))
    return updated


def differences(
    endpoints: Callable[[Tensor], list[Tensor] | None],
) -> Derivatives:
    """Differences of whole runs, for few parameters: forward, or backward without forward endpoints."""

    def derivatives(q: Tensor) -> list[tuple[Tensor, Tensor]]:
        base = endpoints(q)
        assert base is not None

        def along(direction: Tensor) -> list[Tensor]:
            # Two nearly equal times may lose their order in one direction and not in the other.
            for e in (DIFFERENCE, -DIFFERENCE):
                moved = endpoints(q + e * direction)
                if moved is not None:
                    return [(a.double() - b.double()) / e for a, b in zip(moved, base, strict=True)]
            return [torch.zeros_like(b, dtype=torch.float64) for b in base]

        columns = [along(row) for row in torch.eye(len(q), dtype=torch.float64)]
        return [(x, torch.stack([column[p] for column in columns])) for p, x in enumerate(base)]

    return derivatives


def with_source(solver: Solver, source: str) -> Solver:
    """A copy with another ``source``; other solvers are returned unchanged."""
    return replace(solver, source=source) if isinstance(solver, Table | MeanStart | MixtureOfTables) else solver


def with_mean(table: Table, mean: Tensor | None) -> Solver:
    """The solver that runs a table whose first row takes a mean, if there is one."""
    return table if mean is None else MeanStart(table, tuple(mean.flatten().tolist()))
