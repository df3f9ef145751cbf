"""The model of a run: it counts network evaluations where the network is called.

A run integrates a ``MeteredProcess`` or a ``MeteredEquation``: the problem it was given, whose evaluations pass through
an ``NFEMeter``. The call that counts also makes the times of the batch, (B,), and chooses the conditions of its
samples, so that only one function stands between a solver's step and the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.conditions import cut
from solvers.errors import InputError
from solvers.problem import Equation, KnownTimes, Path, Problem, ReverseProcess, batch_times
from solvers.solver import BudgetSpentError


class Spent(NamedTuple):
    """Network evaluations so far: a number for those of the whole batch, a tensor for those of a part of it.

    Attributes:
        whole: evaluations of every sample.
        parts: further evaluations of each sample, int64 (B,); None for none.
    """

    whole: int
    parts: Tensor | None

    def of_each(self, batch: int) -> Tensor:
        """Evaluations of each sample, int64 (batch,)."""
        whole = torch.full((batch,), self.whole, dtype=torch.int64, device="cpu")
        return whole if self.parts is None else whole + self.parts


class Sizes:
    """RMS over the entries of each sample of the states x at which the model was called, and of its answers D."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._x: list[Tensor] = []
        self._answers: list[Tensor] = []

    def add(self, t: Tensor, x: Tensor, answer: Tensor) -> None:
        """Note a call for the whole batch; the norms are those of the dtype of x, and nothing waits for a device."""
        self._times.append(float(t))
        self._x.append(torch.linalg.vector_norm(x.flatten(1), dim=1))
        self._answers.append(torch.linalg.vector_norm(answer.flatten(1), dim=1))

    def diverged(self, path: Path, entries: int, stochastic: bool) -> Tensor | None:
        r"""Which samples left what noise and the model's answers explain, bool (B,); None of fewer than 2 calls.

        A state is a mean of earlier answers, scaled by alpha, and of noise of size sigma, so that with x_1 at the first
        time t_1 and all answers D_j before it

            RMS x_t <= c [ sigma_t max(1, RMS x_1 / sigma_1) + alpha_t max_j RMS D_j ]

        holds with c near 1 of every solver that follows the process: up to 2.3 for extrapolation over 5 to 20
        evaluations. c is 3 here, and 3 (1 + 4 / sqrt(entries)) where noise is drawn, whose tail is longer in few
        entries.
        """
        if len(self._times) < 2:
            return None
        alpha, sigma = path(torch.tensor(self._times, dtype=torch.float64, device="cpu"))[:2]
        x, answers = (torch.stack(c).double() / entries**0.5 for c in (self._x, self._answers))
        noise = (x[:1] / float(sigma[0])).clamp_min(1)
        alpha, sigma = (c.to(x.device)[1:, None] for c in (alpha, sigma))
        allowed = sigma * noise + alpha * answers.cummax(0).values[:-1]
        factor = 3 * (1 + 4 / entries**0.5) if stochastic else 3
        return (x[1:] > factor * allowed).any(0)


class NFEMeter:
    """Counts network evaluations per sample, at the call.

    Attributes:
        model: (x, t) -> like x, with t (B,); the one expensive call.
        cost: network passes in one call.
        rows: the samples that are evaluated, an index or all of them.
        cap: evaluations that no sample may exceed; None for no cap.
        last: last value of the model.
        sizes: sizes of the states and of the model's values at every call, where a run watches them.
        spent: evaluations so far.

    >>> meter = NFEMeter(lambda x, t: x, batch=3, cost=2)
    >>> _ = meter(torch.zeros(3, 2), torch.zeros(3))
    >>> meter.count
    tensor([2, 2, 2])
    """

    def __init__(self, model: Callable[..., Tensor], batch: int, cost: int) -> None:
        self.model, self.batch, self.cost = model, batch, cost
        self.rows: Tensor | None = None
        self.cap: int | None = None
        self.last: Tensor | None = None
        self.spent = Spent(0, None)
        self.sizes: Sizes | None = None

    @property
    def count(self) -> Tensor:
        """Network evaluations so far, int64 (B,)."""
        return self.spent.of_each(self.batch)

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Call the model for the samples in ``rows``.

        Raises:
            BudgetSpentError: the call would exceed ``cap`` for one of them.
        """
        self.check_cap()
        return self.counted(self.model(x, t, **self.of_rows(condition)), x)

    def check_cap(self) -> None:
        """Refuse a call that would exceed the cap."""
        if self.cap is not None:
            count = self.count if self.rows is None else self.count[self.rows]
            if int(count.max()) + self.cost > self.cap:
                raise BudgetSpentError(f"a sample has used its {self.cap} network evaluations")

    def of_rows(self, condition: Mapping[str, Any]) -> Mapping[str, Any]:
        """The conditions of the samples in ``rows``."""
        return condition if self.rows is None or not condition else cut(condition, self.batch, self.rows)

    def counted(self, out: Tensor, x: Tensor) -> Tensor:
        """The value of the model at x, counted and checked."""
        if self.rows is None:
            self.spent = Spent(self.spent.whole + self.cost, self.spent.parts)
        else:
            parts = (
                torch.zeros(self.batch, dtype=torch.int64, device="cpu")
                if self.spent.parts is None
                else self.spent.parts
            )
            parts = parts.index_add(0, self.rows, torch.full_like(self.rows, self.cost))
            self.spent = Spent(self.spent.whole, parts)
        if out.shape != x.shape:
            raise InputError(
                f"the model must return the shape of its input: got {tuple(out.shape)} for x of {tuple(x.shape)}"
            )
        self.last = out
        return out


@dataclass(frozen=True)
class MeteredProcess(ReverseProcess):
    """A reverse process in a run; its ``model`` is the meter."""

    meter: NFEMeter = field(kw_only=True)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]: one evaluation."""
        meter = self.meter
        meter.check_cap()
        out = meter.counted(meter.model(x, batch_times(t, x), **meter.of_rows(self.condition)), x)
        if meter.sizes is not None and t.ndim == 0:
            meter.sizes.add(t, x, out)
        return out

    def denoise_with_share(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t = x], and the share of a learned variance or None: one evaluation."""
        meter = self.meter
        if self.variance is None or self.variance.of != meter.model:
            return self.denoise(x, t), None
        meter.check_cap()
        out, share = self.variance.call(x, batch_times(t, x), **meter.of_rows(self.condition))
        meter.counted(out, x)
        if meter.sizes is not None and t.ndim == 0:
            meter.sizes.add(t, x, out)
        return out, share


@dataclass(frozen=True)
class MeteredEquation(Equation):
    """An equation in a run; its ``model`` is the meter."""

    meter: NFEMeter = field(kw_only=True)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift: one evaluation."""
        meter = self.meter
        meter.check_cap()
        return meter.counted(meter.model(x, batch_times(t, x), **meter.of_rows(self.condition)), x)


def metered(problem: Problem, times: Tensor, batch: int, model: Callable[..., Any] | None = None) -> Any:
    """The problem of a run along a grid, with its meter.

    Args:
        problem: the equation to integrate.
        times: the grid, whose scales are computed at once.
        batch: number of samples.
        model: function to call instead of the problem's model.
    """
    meter = NFEMeter(problem.model if model is None else model, batch, problem.cost)
    if isinstance(problem, ReverseProcess):
        known = KnownTimes(problem.path, times)
        return MeteredProcess(
            meter, known, problem.eta, cost=problem.cost, condition=problem.condition, variance=problem.variance,
            meter=meter,
        )  # fmt: skip
    return MeteredEquation(meter, problem.g, problem.cost, condition=problem.condition, meter=meter)
