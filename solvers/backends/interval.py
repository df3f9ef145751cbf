"""One interval of a grid as other libraries see it: a function of increasing time, clamped to the interval.

Their time is r = |t - t_start|. However far a method probes ahead, the model never sees a time outside the interval.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError, MissingPackageError, NonFiniteError
from solvers.problem import Problem


class NonFiniteDriftError(NonFiniteError):
    """The drift of some samples is not finite."""


class BackendState(NamedTuple):
    """The state of an adapter, per sample: whether it has failed, and a slope that is NaN where it has."""

    stalled: Tensor
    slope: Tensor

    def rows(self, index: Tensor) -> BackendState:
        """The state of a part of the batch."""
        return BackendState(self.stalled[index], self.slope[index])


def require(name: str) -> Any:
    """The library, or an error with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"this solver is the library {name.split('.')[0]}, which is not installed; "
            f"run: pip install {name.split('.')[0]}",
            name=name,
        ) from error


class Interval:
    """The drift of an interval as a function of r = |t - start| in [0, length], clamped to it."""

    def __init__(self, problem: Problem, x: Tensor, start: Tensor, end: Tensor, check: bool) -> None:
        self.problem, self.check = problem, check
        self.start, self.end = (start if start.ndim == 0 else start.reshape(-1)[0]).cpu(), end.cpu()
        length = float(self.end) - float(self.start)
        self.length, self.sign = abs(length), 1.0 if length > 0 else -1.0
        # The last state that the library has accepted, and which samples were not finite.
        self.accepted: tuple[float, Tensor] = (0.0, x)
        self.bad: Tensor | None = None

    def time(self, r: float) -> Tensor:
        """The time t at r."""
        if r >= self.length:
            return self.end
        return self.start + self.sign * r if r > 0 else self.start

    def __call__(self, r: Any, x: Tensor) -> Tensor:
        """The slope in r at (x, r)."""
        slope = self.sign * self.problem.drift(x, self.time(float(r)))
        if self.check:
            self.bad = ~slope.flatten(1).isfinite().all(1)
            if bool(self.bad.any()):
                raise NonFiniteDriftError
        return slope

    def callback_step(self, r: Tensor, x: Tensor, dr: Tensor) -> None:
        """Torchdiffeq calls this before every attempt, with the state it starts from."""
        self.accepted = (float(r), x)

    def result(self, failed: bool = False) -> tuple[Tensor, Tensor, BackendState]:
        """The accepted state and its time, as a solver returns them."""
        r, x = self.accepted
        at = self.time(r).to(x.device).expand(len(x), *(1,) * (x.ndim - 1)).clone()
        slope = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        bad = torch.zeros_like(slope[:, 0], dtype=torch.bool) if self.bad is None else self.bad
        stalled = torch.ones_like(bad) if failed else bad
        return x, at, BackendState(stalled, slope.masked_fill(bad[:, None], torch.nan))


def check_tolerances(rtol: float, atol: float) -> None:
    """Check that the option is positive."""
    if not (rtol > 0 and atol > 0):
        raise InputError(f"tolerances must be positive; got rtol={rtol}, atol={atol}")
