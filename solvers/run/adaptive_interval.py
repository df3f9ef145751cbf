"""One interval of a grid under an adaptive solver: attempts for the samples that are still on their way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.noise import Noise
from solvers.run.meter import MeteredEquation, MeteredProcess
from solvers.run.solution import Status, Step, finite_samples
from solvers.solver import LocalErrorEstimate, Solver


class AdaptiveInterval:
    """Attempts over one interval; samples that have arrived or were stopped leave the batch.

    A sample that was stopped in an earlier interval stays where it is.

    Args:
        solver: the adaptive solver.
        problem: of the run; the cap of its meter stops samples.
        x: (B, ...) where each sample is.
        reached: the time there, (B, 1, ..., 1).
        s: the end of the interval.
        noise: for stochastic solvers.
        status: ``Status`` codes (B,), changed in place.
        errors: request error estimates.
    """

    def __init__(
        self,
        solver: Solver,
        problem: MeteredProcess | MeteredEquation,
        x: Tensor,
        reached: Tensor,
        s: Tensor,
        noise: Noise,
        status: Tensor,
        errors: bool = False,
    ) -> None:
        self.solver, self.problem, self.meter, self.noise = solver, problem, problem.meter, noise
        self.x, self.reached, self.s, self.status, self.errors = x, reached, s, status, errors
        self.rows = (status == Status.ok).nonzero()[:, 0]
        self.estimate: LocalErrorEstimate | None = None
        # False if the last change was not yielded.
        self.reported = False
        self._state: Any = None

    def going(self) -> bool:
        """Whether samples are left, after those that the cap stops have left."""
        if self.meter.cap is not None:
            # The first attempt of a sample may also evaluate its starting slope.
            calls = self.solver.evaluations(1, finish=False) if self._state is None else self.solver.stages
            spent = self.meter.count[self.rows.cpu()] + self.problem.cost * calls
            over = (spent > self.meter.cap).to(self.x.device)
            if bool(over.any()):
                self.status[self.rows[over]] = Status.nfe_cap
                self._keep(~over)
                self.reported = False
        self.meter.rows = self.rows.cpu() if len(self.rows) else None
        return len(self.rows) > 0

    def attempt(self) -> None:
        """One attempt for each sample that is left; nothing changes before it has succeeded."""
        rows, start, before = self.rows, self.reached, self._state
        part, at, state = self.solver.step(
            self.problem, self.x[rows], start[rows], self.s, before, self.noise.rows(rows)
        )
        self.estimate = None
        if self.errors and (local := self.solver.estimate(self.problem, self.x[rows], start[rows], at, before, state)):
            error = torch.full((len(self.x),), torch.nan, dtype=torch.float64, device=self.x.device)
            reached = start.index_copy(0, rows, at)
            self.estimate = LocalErrorEstimate(start, reached, error.index_copy(0, rows, local.error))
        self.reached = start.index_copy(0, rows, at)
        self.x = self.x.index_copy(0, rows, part)
        stalled = state.stalled
        if bool(stalled.any()):
            bad = ~finite_samples(state.slope)
            self.status[rows[stalled & bad]] = Status.non_finite
            self.status[rows[stalled & ~bad]] = Status.dt_min
        self._state = state
        self.reported = True
        self._keep((at.reshape(-1) != self.s.to(at)) & ~stalled)

    def step(self, index: int) -> Step:
        """The current state as a ``Step``."""
        spent, last = self.meter.spent, self.meter.last
        return Step(index, self.reached, self.x, spent, self.status.clone(), last, self.estimate)

    def _keep(self, index: Tensor) -> None:
        self.rows = self.rows[index]
        self._state = None if self._state is None else self._state.rows(index)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """A time for each sample, (B, 1, ..., 1) on the device of x; one time of the whole batch is repeated."""
    return t.to(x.device).expand(len(x), *(1,) * (x.ndim - 1)).clone() if t.ndim == 0 else t
