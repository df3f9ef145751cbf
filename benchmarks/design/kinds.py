r"""Mixtures of tables for ``benchmarks.design``: one row of coefficients for every expert, and the gating weights.

From one table for all, every kind gets its own copy of the rows after the first; the times stay common. In turns

    gates      at each evaluation a multinomial logistic regression from the features of
    ``solvers.fitted.gating`` to the kinds
               of the models of the training set;
    numbers    Levenberg-Marquardt steps (``sde_diffusion.tuning.fit.descend``) on the rows of all kinds and the times.

The derivative of a sample's end with respect to a number of one kind is that with respect to the number of its own row,
times its weight of the kind: one batch of disturbed runs, each with the gates that it would see, gives all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sde_diffusion.tuning.default_pf_ode import mean_table
from sde_diffusion.tuning.fit import TableFit, run
from solvers.fitted.gating import FAR, GateFeatures, GatingNetwork, weighted_sum
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import table_entry, table_of
from solvers.problem import ReverseProcess

_DIFFERENCE = 1e-3
_BAND = 4  # columns of a row that are fitted: the value of its own step and of the three before
_LEAST_WIDTH = 1e-3  # late changes can be below what counts for every sample
_PENALTY = 1e-3  # on squared slopes of a gate, beside the mean log-loss


@dataclass(frozen=True)
class Kinds:
    """The coefficients of a mixture of tables, in z = x / alpha and rho.

    Attributes:
        numbers: (kinds, rows, 1 + rows), decay first, then weights, newest value first; the first row is common.
        rho: sigma / alpha between the first and the last time.
        gates: as in ``MixtureOfTables``.
        size: RMS of the data, for the scale of the decays.
    """

    numbers: Tensor
    rho: Tensor
    gates: tuple[GatingNetwork | None, ...]
    size: float = 0.5

    @classmethod
    def copies(cls, entry: dict[str, Any], kinds: int, size: float) -> Kinds:
        """Every kind with the rows of one table."""
        n = len(entry["rows"])
        numbers = torch.zeros(kinds, n, n + 1, dtype=torch.float64)
        for i, ((decay, weights),) in enumerate(entry["rows"]):
            numbers[:, i, : 1 + len(weights)] = torch.tensor([decay, *weights], dtype=torch.float64)
        return cls(numbers, torch.tensor(entry["rho"], dtype=torch.float64), (None,) * n, size)

    @classmethod
    def mean_table(cls, entry: dict[str, Any], fits: Sequence[TableFit], kinds: Sequence[int], size: float) -> Kinds:
        """Every kind with the mean of the rows that an entry, with gates or without, has for the models of the kind."""
        table = table_of(fits[0].sde, entry)
        numbers: list[list[Tensor]] = [[] for _ in range(max(kinds) + 1)]
        for fit, kind in zip(fits, kinds, strict=True):
            plain = MixtureOfTables((mean_table(table, fit),), (None,) * len(table.gates))
            numbers[kind].append(cls.copies(table_entry(fit.sde, plain), 1, size).numbers[0])
        mean = torch.stack([torch.stack(rows).mean(0) for rows in numbers])
        return cls(mean, torch.tensor(entry["rho"], dtype=torch.float64), (None,) * len(table.gates), size)

    @property
    def steps(self) -> int:
        """Rows."""
        return self.numbers.shape[1]

    def columns(self, i: int) -> int:
        """Number of fitted coefficients of row i: the decay and some weights."""
        return 1 + min(i + 1, _BAND)

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(kind, row, column) of every fitted number of the rows; kind -1 is all."""
        common = [(-1, 0, j) for j in range(self.columns(0))]
        kinds, n = range(len(self.numbers)), range(1, self.steps)
        return common + [(k, i, j) for k in kinds for i in n for j in range(self.columns(i))]

    @property
    def total(self) -> int:
        """Number of fitted parameters: coefficients of the rows, then log rho."""
        return len(self.places) + len(self.rho)

    def scale(self, i: int, j: int) -> float:
        """Change of a coefficient when q changes by 1: the share of z that the step replaces."""
        rho = [math.inf, *self.rho.tolist(), 0.0]
        step = 1.0 if i == 0 else 1 - rho[i + 1] / rho[i]
        if j > 0:
            return step
        return step * self.size / (math.hypot(rho[i], self.size) if i else 1.0)

    def at(self, q: Tensor) -> Kinds:
        """With the numbers changed by q."""
        numbers, changes = self.numbers.clone(), q.tolist()
        for change, (k, i, j) in zip(changes, self.places, strict=False):
            which = slice(None) if k < 0 else slice(k, k + 1)
            numbers[which, i, j] += change * self.scale(i, j)
        return replace(self, numbers=numbers, rho=self.rho * torch.exp(q[len(self.places) :].clamp(-3, 3)))

    @property
    def ordered(self) -> bool:
        """Whether the times fall."""
        return bool((self.rho.log().diff() < -1e-2).all())

    def entry(self) -> dict[str, Any]:
        """As ``pf_ode.json`` holds it; zeros at the end of a row are left out."""
        rows = []
        for i in range(self.steps):
            used = max(1, int((self.numbers[:, i] != 0).any(0).nonzero().max()))
            kinds = self.numbers[:1] if self.gates[i] is None else self.numbers
            rows.append([[float(r[i, 0]), r[i, 1 : 1 + used].tolist()] for r in kinds])
        return {"rho": self.rho.tolist(), "rows": rows, "gates": [gate and list(gate) for gate in self.gates]}

    def table(self, fit: TableFit) -> MixtureOfTables:
        """For the process of a fit."""
        return table_of(fit.sde, self.entry())

    def with_gates(self, fits: Sequence[TableFit], kinds: Sequence[int]) -> Kinds:
        """Gates that tell the kinds of these models apart, each model counting the same."""
        out, runs = self, [Run(fit) for fit in fits]
        for i in range(self.steps):
            if i > 0:
                gate = _gate([one.features(out.table(one.fit)) for one in runs], kinds)
                out = replace(out, gates=(*out.gates[:i], gate, *out.gates[i + 1 :]))
            for one in runs:
                one.advance(out.table(one.fit))
        return out

    def sensitivities(self, q: Tensor, fit: TableFit) -> tuple[Tensor, Tensor]:
        """The endpoints at q and their derivatives: (B, ...) and (|q|, B, ...)."""
        here = self.at(q)
        shape, e = fit.x1.shape, _DIFFERENCE
        every = torch.arange(shape[0])
        # Scales at each time, and with rho larger by e.
        times = torch.cat([torch.ones(1, dtype=torch.float64), fit.sde.time(-torch.log(here.rho))])
        later = torch.cat([times[:1], fit.sde.time(-torch.log(here.rho) - e)])
        (alpha, sigma), (shift_noise_levels, _) = fit.sde.marginal(times), fit.sde.marginal(later)
        alpha[0] = shift_noise_levels[0] = math.hypot(float(alpha[0]), float(sigma[0]))
        # The first entry is the undisturbed run; each of the others has one number changed.
        z, values, order, weights = (fit.x1 / float(alpha[0]))[None], [], [], []
        seen = GateFeatures(0)  # by the runs, one after the other
        for i in range(self.steps):
            scales, t = (c[i].expand(len(z)) for c in (alpha, times))
            if i > 0:
                z, values = torch.cat([z, z[:1]]), [torch.cat([v, v[:1]]) for v in values]
                scales, t = torch.cat([scales, shift_noise_levels[i : i + 1]]), torch.cat([t, later[i : i + 1]])
                order.append((i - 1, -1))
            x = z * scales.to(z.dtype).reshape(-1, *[1] * len(shape))
            out = fit.denoise(x.reshape(-1, *shape[1:]), t.repeat_interleave(shape[0]), every.repeat(len(z)))
            values = [out.reshape(z.shape), *values]
            same = x.shape[0] * shape[0] - (shape[0] if i > 0 else 0)  # all but the run whose time is later
            parts = [seen.after(x.flatten(0, 1)[:same], out[:same], *fit.sde.marginal(times[i]))]
            if i > 0:
                parts.append(_first(seen, shape[0]).after(x[-1], out[same:], *fit.sde.marginal(later[i])))
            seen = _joined(parts)
            gate = here.gates[i]
            each = torch.ones(1, len(self.numbers)) if gate is None else gate(seen.features)
            weights.append(each[: shape[0]].expand(shape[0], -1))
            row = here.numbers[:1, i] if gate is None else (each[:, :, None] * here.numbers[:, i]).sum(1)
            row = row[:, : 1 + len(values)]
            moved = weighted_sum(row, z.flatten(0, 1), [v.flatten(0, 1) for v in values]).reshape(z.shape)
            changed = [moved[:1] + e * v[:1] for v in (z, *values)[: self.columns(i)]]
            order += [(i, j) for j in range(len(changed))]
            seen = _joined([seen, *[_first(seen, shape[0])] * len(changed)])._replace(number=i + 1)
            values = [torch.cat([v, v[:1].expand(len(changed), *shape)]) for v in values]
            z = torch.cat([moved, *changed])
        found = dict(zip(order, (z[1:].double() - z[:1].double()) / e, strict=True))
        columns = [found[i, -1] for i in range(len(self.rho))]
        rows = [
            found[i, j] * self.scale(i, j) * (1 if k < 0 else _like(weights[i][:, k], found[i, j]))
            for k, i, j in self.places
        ]
        return z[0], torch.stack([*rows, *columns])

    def endpoints(self, fit: TableFit) -> Tensor:
        """Endpoints of the samples of a fit."""
        return run(self.table(fit), fit)


def _first(seen: GateFeatures, n: int) -> GateFeatures:
    """Gate features of the first n samples."""
    start, features = (None if c is None else c[:n] for c in (seen.start, seen.features))
    return GateFeatures(seen.number, tuple(v[:n] for v in seen.values), start, features)


def _joined(parts: Sequence[GateFeatures]) -> GateFeatures:
    """Gate features of the samples of all parts."""
    starts, features = ([c for c in of if c is not None] for of in zip(*(p[2:4] for p in parts), strict=True))
    return GateFeatures(
        parts[0].number,
        (torch.cat([part.values[0] for part in parts]),),
        torch.cat(starts),
        torch.cat(features) if features else None,
    )


def _like(c: Tensor, x: Tensor) -> Tensor:
    return c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class Run:
    """One run of a table that is made while it goes; what a row evaluates is kept for when it is made."""

    def __init__(self, fit: TableFit) -> None:
        self.fit, self.x = fit, fit.x1
        self.seen = GateFeatures(0)
        self.value: Tensor | None = None
        every = torch.arange(len(fit.x1))

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            if self.value is None:
                self.value = fit.denoise(x, t, every)
            return self.value

        self.process = ReverseProcess(denoise, fit.sde)

    def features(self, table: MixtureOfTables) -> Tensor:
        """Input of the next row's gate."""
        seen = self._next(table)[1]
        assert seen.features is not None
        return seen.features

    def advance(self, table: MixtureOfTables) -> None:
        """The next row."""
        self.x, self.seen = self._next(table)
        self.value = None

    def _next(self, table: MixtureOfTables) -> tuple[Tensor, GateFeatures]:
        t, s = torch.tensor(table.times[self.seen.number : self.seen.number + 2], dtype=torch.float64)
        x, _, seen = table.step(self.process, self.x, t, s, self.seen, None)  # a table draws no noise
        return x, seen


def _gate(seen: Sequence[Tensor], kinds: Sequence[int]) -> GatingNetwork:
    """The logistic regression from the features of each model to its kind."""
    x = torch.cat(list(seen))
    of = torch.cat([torch.full((len(s),), kind) for s, kind in zip(seen, kinds, strict=True)])
    each = torch.cat([torch.full((len(s),), 1 / len(s) / len(seen)) for s in seen])
    centre, width = x.mean(0), x.std(0).clamp_min(_LEAST_WIDTH)
    near = ((x - centre) / width).clamp(-FAR, FAR)
    found = LogisticRegression(C=1 / (2 * _PENALTY), max_iter=2000, tol=1e-8)
    found.fit(near.numpy(), of.numpy(), each.double().numpy())
    return GatingNetwork.of(centre.tolist(), width.tolist(), found.coef_.T.tolist(), found.intercept_.tolist())
