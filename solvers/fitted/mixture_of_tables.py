r"""A mixture of tables, weighted for each sample by features of its own evaluations.

No single table is accurate for both images of a few sharp strokes and mixtures of narrow Gaussians, but the evaluations
of a sample separate these cases long before the last step. From their features (``solvers.fitted.gating``) a
multinomial logistic regression (``GatingNetwork``) gives each of K experts a weight g_k, with sum 1, and the
coefficients of the row are

    a_i = sum_k g_k a_i^k,       b_ij = sum_k g_k b_ij^k,

with K tables of the same times. The weights differ between samples and need no further evaluation. This is a mixture of
experts (Jacobs et al. 1991) whose experts are tables. With an ``Invariance`` it depends on neither zero nor unit of the
data, and may start below its first noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams, Update, combine
from solvers.fitted.gating import GateFeatures, GatingNetwork, weighted_sum
from solvers.fitted.invariance import Invariance, per_sample, plain_row, within
from solvers.fitted.table import FixedGridSolver, Table
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, sample_rms

_LOWER = ExponentialAdams(2, variable="time")  # what the error estimate compares with, and the safe step
_FIRST = ExponentialAdams(1, variable="time", corrector=True)  # corrects the first step of a path that starts low


@dataclass(frozen=True)
class MixtureOfTables(FixedGridSolver):
    """A table of N evaluations whose coefficients are, for each sample, a weighted mean over K tables.

    Args:
        tables: one for each expert, with the same times.
        gates: one for each row; None where all tables have the same row, which is always so for the first.
        source: origin of the coefficients.
        invariance: how the rows are made independent of the data's zero and unit and of the start; None to apply them
            as they are.

    Raises:
        ValueError: tables with different times, a missing gate, or a gate for the first row.

    >>> from solvers.fitted.table import Row
    >>> tables = [Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (w,)))) for w in (1.0, 2.0)]
    >>> gate = GatingNetwork((0.0, 0.0), (1.0, 1.0), ((9.0, -9.0), (0.0, 0.0)), (0.0, 0.0))
    >>> MixtureOfTables(tuple(tables), (None, gate)).evaluations(steps=2)
    2
    """

    tables: tuple[Table, ...]
    gates: tuple[GatingNetwork | None, ...]
    source: str = "mixture of tables"
    invariance: Invariance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "invariance", self.invariance and Invariance(*self.invariance))
        lead = self.invariance.lead if self.invariance else 0
        object.__setattr__(self, "gates", tuple(gate and GatingNetwork.of(*gate) for gate in self.gates))
        if len({table.times for table in self.tables}) != 1:
            raise InputError("all tables of a mixture need the same times")
        if len(self.gates) != len(self.tables[0].rows) or (self.gates[0] is not None and not lead):
            raise InputError(
                f"one gate is needed for each of {len(self.tables[0].rows)} rows, None for the first; got "
                f"{len(self.gates)}"
            )

    def on(self, path: Path) -> MixtureOfTables:
        """A copy for this path alone."""
        return replace(self, tables=tuple(table.on(path) for table in self.tables))

    @property
    def data_independent(self) -> bool:
        """True if no row is gated or limited."""
        return not any(self.gates) and self.invariance is None

    @property
    def times(self) -> tuple[float, ...]:
        """The shared time grid."""
        return self.tables[0].times

    @property
    def grid(self) -> tuple[float, ...]:
        """The shared time grid."""
        return self.times

    def init(self, problem: ReverseProcess, times: Tensor) -> GateFeatures:
        """The state before the first evaluation.

        Raises:
            ValueError: the grid or the path differs from that of the tables.
        """
        self.tables[0].init(problem, times)
        return GateFeatures(self.invariance.lead if self.invariance else 0)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: GateFeatures, noise: Noise
    ) -> tuple[Tensor, Tensor, GateFeatures]:
        """One row, with the coefficients of each sample."""
        value = problem.denoise(x, t)
        if self.invariance is not None:
            return self._invariant(self.invariance, problem, x, value, (t, s), state)
        i = state.number
        seen = state.after(x, value, *problem.path(t)[:2])
        row = self._row(i, seen, x.device)
        out = weighted_sum(row, x, seen.values)
        return out, s, seen._replace(number=i + 1, values=seen.values[: self._kept[i]], row=row)

    def _row(self, i: int, seen: GateFeatures, device: torch.device) -> Tensor:
        numbers, gate = self._on(device)[i]
        row = numbers[:1]
        if gate is not None and seen.features is not None:
            row = (GatingNetwork.weights(seen.features, gate)[:, :, None] * numbers).sum(1)
        return row

    def _invariant(
        self,
        view: Invariance,
        problem: ReverseProcess,
        x: Tensor,
        value: Tensor,
        step: tuple[Tensor, Tensor],
        state: GateFeatures,
    ) -> tuple[Tensor, Tensor, GateFeatures]:
        i, (t, s) = state.number - view.lead, step
        alpha, sigma = (float(c) for c in problem.path(t)[:2])
        end = float(problem.path(s).alpha)
        seen = view.after(state, x, value, alpha, sigma)
        if state.base is not None:
            first = _FIRST.plan(problem.path, 0.0, self.times)[0].corrector
            assert first is not None
            x, seen = combine(first, state.base, seen.values), seen._replace(base=None)
        row, missing = view.completed(self._row(i, seen, x.device), seen, (alpha, sigma, end), i)
        out, share = weighted_sum(row, x, seen.values), None
        if missing is not None:
            assert seen.centre is not None
            out += per_sample(missing, out) * seen.centre
        lower = Update(0.0, (end,), 0.0)
        if i + 1 < len(self.gates):
            lower = _LOWER.plan(problem.path, 0.0, self.times)[i].predictor
        safe = combine(lower, x, seen.values)
        if i > 0:
            out, share = within(out, safe, sum(lower.weights), seen.values, view.limit(i))
        whole = partial(plain_row, row, missing, i if value.ndim == 2 else max(i - 1, 0), lower, share, i)
        kept = seen.values[: max(self._kept[i], 2)]
        if i == 0 and not view.exact and len(self.gates) > 1:
            seen = seen._replace(base=x)
        return out, s, seen._replace(number=state.number + 1, values=kept, row=whole, apart=out - safe)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: GateFeatures, after: GateFeatures
    ) -> LocalErrorEstimate | None:
        """The distance between a step and the step of the exponential method with data prediction and two values."""
        if self.invariance is not None:
            return None if after.apart is None else LocalErrorEstimate(t, s, sample_rms(after.apart))
        i = before.number
        lower = Update(0.0, (1.0,), 0.0)
        if i + 1 < len(self.gates):
            step = _LOWER.plan(problem.path, 0.0, self.times)[i]
            if step.order == 0:
                return None
            lower = step.predictor
        row = after.coefficients()
        row = F.pad(row, (0, max(0, 1 + len(lower.weights) - row.shape[1])))
        for k, weight in enumerate((lower.decay, *lower.weights)):
            row[:, k] -= weight
        return LocalErrorEstimate(t, s, sample_rms(weighted_sum(row, x, (after.values[0], *before.values))))

    @cached_property
    def _kept(self) -> list[int]:
        """Number of values kept after each row: those of later rows, and one for an error estimate."""
        used = [max(len(table.rows[i].weights) for table in self.tables) for i in range(len(self.gates))]
        return [max([1, *(n - k for k, n in enumerate(used[i + 1 :], 1))]) for i in range(len(used))]

    @cached_property
    def _placed(self) -> dict[torch.device, list[tuple[Tensor, tuple[Tensor, ...] | None]]]:
        return {}

    def _on(self, device: torch.device) -> list[tuple[Tensor, tuple[Tensor, ...] | None]]:
        """The coefficients of each row, (experts, 1 + weights), and its gate, on a device."""
        if device not in self._placed:
            self._placed[device] = [
                (self._numbers(i).to(device, non_blocking=True), gate and gate.on(device))
                for i, gate in enumerate(self.gates)
            ]
        return self._placed[device]

    def _numbers(self, i: int) -> Tensor:
        rows = [table.rows[i] for table in self.tables]
        longest = max(len(row.weights) for row in rows)
        padded = [[row.decay, *row.weights, *[0.0] * (longest - len(row.weights))] for row in rows]
        return torch.tensor(padded, dtype=torch.float64, device="cpu")
