r"""A mixture of tables, weighted for each sample by features of its own evaluations.

No single table is accurate for both images of a few sharp strokes and mixtures of narrow Gaussians, but the evaluations
of a sample separate these cases long before the last step. With z = x / alpha and rho = sigma / alpha, after the
evaluation D_i = D(x_i, t_i)

    u_i = log rms((z_i - D_i) / rho_i) - log rms(eps),      eps = x_T / sqrt(alpha_T^2 + sigma_T^2),
    n_i = log rms(D_i),         d_i = log rms(D_i - D_{i-1}),

measure the fraction of the noise that is predicted as noise, the size of the denoised sample, and its last change. For
a Gaussian of variances c_k the mean of exp(2 u_i) is that of rho^2 / (c_k + rho^2), a summary of the spectrum of the
data at the noise level of the step. From these features a multinomial logistic regression (``GatingNetwork``) gives
each of K experts a weight g_k, with sum 1, and the coefficients of the row are

    a_i = sum_k g_k a_i^k,       b_ij = sum_k g_k b_ij^k,

with K tables of the same times. The weights differ between samples and need no further evaluation. This is a mixture of
experts (Jacobs et al. 1991) whose experts are tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams, Update
from solvers.fitted.table import FixedGridSolver, Table
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, sample_rms

# Features are clamped at this many standard deviations from their mean in the fit.
FAR = 4.0
_LOWER = ExponentialAdams(2, variable="time")  # what the error estimate compares with
_LEAST = -4.0  # log of the smallest root mean square that counts


class GatingNetwork(NamedTuple):
    """softmax(slopes' clamp((features - centre) / width, -4, 4) + offset): the weights of the experts."""

    centre: tuple[float, ...]
    width: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...]

    @classmethod
    def of(
        cls, centre: Sequence[float], width: Sequence[float], slopes: Sequence[Sequence[float]], offset: Sequence[float]
    ) -> GatingNetwork:
        """The gating network from the lists of a file."""
        return cls(tuple(centre), tuple(width), tuple(map(tuple, slopes)), tuple(offset))

    def __call__(self, features: Tensor) -> Tensor:
        """(B, features) -> (B, kinds), float64.

        >>> gate = GatingNetwork((0.0,), (1.0,), ((1.0, -1.0),), (0.0, 0.0))
        >>> gate(torch.zeros(1, 1, dtype=torch.float64))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
        """
        return self.weights(features, self.on(features.device))

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The parameters on a device, stacked for few operations; the copy is asynchronous."""
        centre, width, slopes, offset = (torch.tensor(c, dtype=torch.float64, device="cpu") for c in self)
        numbers = (-centre / width, 1 / width, slopes, offset)
        return tuple(c.to(device, non_blocking=True) for c in numbers)

    @staticmethod
    def weights(features: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        """The gating network, with existing parameters."""
        start, factor, slopes, offset = numbers
        far = torch.addcmul(start, features, factor).clamp_(-FAR, FAR)
        # Sums, because the rounding of a matrix product would depend on the batch.
        return torch.softmax((far[:, :, None] * slopes).sum(1).add_(offset), 1)


class GateFeatures(NamedTuple):
    """Features of the evaluations so far.

    Attributes:
        number: number of rows done.
        values: predictions of the model, newest first.
        start: log rms(eps), (B, 1).
        features: up to three residuals u_i, the size n_i, up to two changes d_i from the second on, each newest first:
            (B, features) float64.
        row: the coefficients of the last row, (B or 1, 1 + weights): decay, then weights, newest value first.
    """

    number: int
    values: tuple[Tensor, ...] = ()
    start: Tensor | None = None
    features: Tensor | None = None
    row: Tensor | None = None

    def after(self, x: Tensor, value: Tensor, alpha: Tensor, sigma: Tensor) -> GateFeatures:
        """With one evaluation more, at x_t = x."""
        if self.number == 0:
            return self._replace(values=(value,), start=_log_rms(math.hypot(alpha, sigma), x))
        assert self.start is not None
        parts = [x.sub(value, alpha=float(alpha)), value]
        if self.number > 1:  # D at pure noise has no information on the data, and that of a network is far off
            parts.append(value - self.values[0])
        now = _log_rms(float(sigma), *parts)
        now[:, :1] -= self.start
        return self._replace(values=(value, *self.values), features=self._joined(now))

    def _joined(self, now: Tensor) -> Tensor:
        """The features with the residual, size and change of this evaluation in front of their like."""
        if self.features is None:
            return now
        residuals = min(self.number - 1, 3)
        earlier, changes = self.features[:, : min(residuals, 2)], self.features[:, residuals + 1 : residuals + 2]
        return torch.cat([now[:, :1], earlier, now[:, 1:], changes], 1)


def weighted_sum(row: Tensor, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """decay x + sum_j weights_j values_j, with a row for all samples or one for each.

    Args:
        row: (1 or B, 1 + weights).
        x: (B, ...).
        values: like x, in the order of the weights.
    """
    decay, *weights = row.to(x.dtype).reshape(*row.shape, *(1,) * (x.ndim - 1)).unbind(1)
    out = x * decay
    for value, weight in zip(values, weights, strict=False):
        out.addcmul_(value, weight)
    return out


def _log_rms(unit: float, *parts: Tensor) -> Tensor:
    """Log of the root mean square of each sample, the first in units, (B, parts) float64, clamped below at -4."""
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in parts]
    out = torch.stack(norms, 1).to(torch.float64).div_(parts[0][0].numel() ** 0.5)
    out[:, 0] /= unit
    return out.log_().clamp_min_(_LEAST)


@dataclass(frozen=True)
class MixtureOfTables(FixedGridSolver):
    """A table of N evaluations whose coefficients are, for each sample, a weighted mean over K tables.

    Args:
        tables: one for each expert, with the same times.
        gates: one for each row; None where all tables have the same row, which is always so for the first.
        source: origin of the coefficients.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "gates", tuple(gate and GatingNetwork.of(*gate) for gate in self.gates))
        if len({table.times for table in self.tables}) != 1:
            raise InputError("all tables of a mixture need the same times")
        if len(self.gates) != len(self.tables[0].rows) or self.gates[0] is not None:
            raise InputError(
                f"one gate is needed for each of {len(self.tables[0].rows)} rows, None for the first; got "
                f"{len(self.gates)}"
            )

    def on(self, path: Path) -> MixtureOfTables:
        """A copy for this path alone."""
        return replace(self, tables=tuple(table.on(path) for table in self.tables))

    @property
    def data_independent(self) -> bool:
        """True if no row is gated."""
        return not any(self.gates)

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
        return GateFeatures(0)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: GateFeatures, noise: Noise
    ) -> tuple[Tensor, Tensor, GateFeatures]:
        """One row, with the coefficients of each sample."""
        i = state.number
        seen = state.after(x, problem.denoise(x, t), *problem.path(t)[:2])
        numbers, gate = self._on(x.device)[i]
        row = numbers[:1]
        if gate is not None and seen.features is not None:
            row = (GatingNetwork.weights(seen.features, gate)[:, :, None] * numbers).sum(1)
        out = weighted_sum(row, x, seen.values)
        return out, s, seen._replace(number=i + 1, values=seen.values[: self._kept[i]], row=row)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: GateFeatures, after: GateFeatures
    ) -> LocalErrorEstimate | None:
        """The distance between a step and the step of the exponential method with data prediction and two values."""
        i = before.number
        assert after.row is not None
        lower = Update(0.0, (1.0,), 0.0)
        if i + 1 < len(self.gates):
            step = _LOWER.plan(problem.path, 0.0, self.times)[i]
            if step.order == 0:
                return None
            lower = step.predictor
        row = F.pad(after.row, (0, max(0, 1 + len(lower.weights) - after.row.shape[1])))
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
