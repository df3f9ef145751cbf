r"""Adaptive embedded Runge-Kutta, with a step size for each sample.

The equation is dy/dtau = F(y, tau): the drift in t, or the probability-flow ODE in the coordinates
of ``solvers/classical/coordinates.py``, which need fewer steps. An attempt of size h gives two
results of orders p and p - 1 from the same slopes; their difference e estimates the local error.
With w = atol + rtol max(|y|, |y_new|) the error norm of a sample is err = RMS(e / w), and err <= 1
accepts. The next step is h times

    clip(0.9 err^(-0.7/p) err_previous^(0.4/p), 0.2, 5)

(a PI controller: Gustafsson 1991; Hairer & Wanner 1996, IV.2), at most 1 right after a rejection.
After a rejection it is 0.9 err^(-1/p) within [0.2, 0.9], or 0.1 after a non-finite attempt. The
first step is

    h = min((0.01 / |F|)^(1/(p+1)), |y| / |F|),        both in units of w,

the guess of Hairer, Norsett & Wanner 1993, II.4, without its extra evaluation. A step is cut to end
exactly at the end of the interval, so no time outside it is evaluated. The last slope of an
accepted attempt is the first of the next. Samples that reach the end leave the batch. Positions,
steps and error norms are float64 for every dtype of x; a tolerance below the resolution of x is
raised to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.classical.butcher_tableaus import DORMAND_PRINCE, Pair
from solvers.classical.coordinates import Angle, Coordinates, Time
from solvers.errors import InputError, choose
from solvers.noise import Noise
from solvers.problem import Problem, ReverseProcess, like
from solvers.solver import LocalErrorEstimate, Solver, sample_rms

FORMS = ("velocity", "raw")


class EmbeddedState(NamedTuple):
    """State of each sample, (B,): position, last step, and input of the next attempt.

    Attributes:
        tau: position.
        scale: N there.
        h: size of the next step.
        error: error norm of the last accepted attempt.
        rejected: whether the last attempt was.
        stalled: whether the sample cannot continue.
        slope: dy/dtau at the position (B, ...); NaN where the sample stalled because values were
            not finite.
        coordinates: shared by the batch.
        gap: e of the attempt just made; kept for ``Solver.estimate`` only.
    """

    tau: Tensor
    scale: Tensor
    h: Tensor
    error: Tensor
    rejected: Tensor
    stalled: Tensor
    slope: Tensor
    coordinates: Coordinates
    gap: Tensor | None = None

    def rows(self, index: Tensor) -> EmbeddedState:
        """The state of a part of the batch."""
        return self._replace(**{name: getattr(self, name)[index] for name in self._fields[:7]}, gap=None)


@dataclass(frozen=True)
class EmbeddedRungeKutta(Solver):
    """An embedded pair with per-sample error control.

    Args:
        pair: the method, see ``solvers.classical.butcher_tableaus.PAIRS``.
        rtol: tolerance relative to |y|, per step.
        atol: absolute tolerance per step; None for the value of rtol, which suits data of about
            unit size.
        form: "velocity" integrates a probability flow in the angle between data and noise, "raw" in
            t. An Equation has no noise levels and is always integrated in t.
        sigma_data: the d of the velocity form: about the standard deviation of the data.
        dt_min: a rejected step below this size stops the sample with the status dt_min.

    Raises:
        ValueError: tolerances, sigma_data or dt_min not positive, or an unknown form.

    >>> from solvers import Equation, solve
    >>> decay = Equation(lambda x, t: -x)
    >>> precise, x = EmbeddedRungeKutta(rtol=1e-9), torch.ones(1, 1).double()
    >>> out = solve(decay, x, solver=precise, grid=[0.0, 1.0])
    >>> abs(float(out.x) - 0.36787944117) < 1e-9
    True
    """

    pair: Pair = DORMAND_PRINCE
    rtol: float = 1e-4
    atol: float | None = None
    form: str = "velocity"
    sigma_data: float = 1.0
    dt_min: float = 1e-12

    adaptive = True
    grid = "ends"

    def __post_init__(self) -> None:
        choose(self.form, {f: f for f in FORMS}, "form")
        if not (self.rtol > 0 and (self.atol is None or self.atol > 0)):
            raise InputError(f"tolerances must be positive; got rtol={self.rtol}, atol={self.atol}")
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data must be positive; got {self.sigma_data}")
        if not self.dt_min > 0:
            raise InputError(f"dt_min must be positive; got {self.dt_min}")

    @property
    def order(self) -> int:
        """Order of the pair's solution."""
        return self.pair.order

    @property
    def source(self) -> str:
        """Publication of the pair."""
        return self.pair.source

    @property
    def stages(self) -> int:
        """New evaluations in an attempt; the first attempt in a grid interval has one more."""
        return self.pair.stages

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """The fewest evaluations of a run: one attempt in every interval."""
        return (self.stages + 1) * (steps - 1) + 1 if finish else (self.stages + 1) * steps

    def init(self, problem: Problem, times: Tensor) -> None:
        """Refuse a grid that starts where the flow is not defined."""
        if isinstance(problem, ReverseProcess) and float(problem.path(times[0]).sigma) == 0:
            raise InputError(
                f"the flow cannot start at t = {float(times[0]):.6g}, where sigma = 0 and the "
                "score does not exist; start a little later, for example at 1e-4"
            )

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: EmbeddedState | None, noise: Noise
    ) -> tuple[Tensor, Tensor, EmbeddedState]:
        """One attempt for every sample; x and the time stay where the attempt is rejected."""
        ones = (len(x), *(1,) * (x.ndim - 1))
        t = t.to(x.device).expand(ones) if t.ndim == 0 else t
        if state is None:
            state = self._start(problem, x, t, s)
        coordinates, s = state.coordinates, s.to(t)
        y = x / like(state.scale.reshape(ones), x)
        left = coordinates.position(s) - state.tau
        last = state.h >= left.abs()
        h = torch.where(last, left, state.h * left.sign())
        # All stage positions in one go: their times are found once per attempt.
        nodes = torch.tensor(self.pair.c, dtype=torch.float64, device=x.device)
        points = coordinates.points(state.tau + nodes[:, None] * h)
        points = points._replace(t=torch.where(last & (nodes[:, None] == 1), s, points.t))

        step = like(h.reshape(ones), x)
        slopes = [state.slope]
        new = y
        for i, row in enumerate(self.pair.a):
            new = y + step * _weighted(row, slopes)
            slopes.append(coordinates.slope(problem, new, points.stage(i, ones)))
        end = points.stage(-1, ones)

        gap = step * _weighted(self.pair.error, slopes)
        error = _norm(gap, self._weight(y, new))
        finite = error.isfinite() & new.flatten(1).isfinite().all(1)
        accepted = finite & (error <= 1)
        h_next = h.abs() * self._factor(error, finite, accepted, state)
        # A step cut short by the end of the interval is no reason to shorten the next one.
        h_next = torch.where(accepted & last, torch.maximum(h_next, state.h), h_next)
        # A start that is not finite cannot get better by shorter steps.
        lost = ~state.slope.flatten(1).isfinite().all(1)
        stalled = lost | (~accepted & (h_next < self.dt_min))

        keep = accepted.reshape(ones)
        slope = torch.where(keep, slopes[-1], slopes[0])
        slope = torch.where((stalled & ~finite).reshape(ones), torch.nan, slope)
        state = EmbeddedState(
            torch.where(accepted, state.tau + h, state.tau),
            torch.where(accepted, end.scale.flatten(), state.scale),
            h_next,
            # Below 1e-4 the error carries no trend and would only throttle the next step.
            torch.where(accepted, error.clamp_min(1e-4), state.error),
            ~accepted,
            stalled,
            slope,
            coordinates,
            gap,
        )
        return torch.where(keep, like(end.scale, x) * new, x), torch.where(keep, end.t, t), state

    def estimate(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, before: Any, after: EmbeddedState
    ) -> LocalErrorEstimate:
        """RMS over the sample of the embedded difference; NaN where the attempt was rejected."""
        assert after.gap is not None
        size = sample_rms(after.gap) * after.scale
        return LocalErrorEstimate(t, s, size.masked_fill(after.rejected, torch.nan))

    def _start(self, problem: Problem, x: Tensor, t: Tensor, s: Tensor) -> EmbeddedState:
        coordinates: Coordinates = Time()
        if isinstance(problem, ReverseProcess) and self.form == "velocity":
            low, high = min(float(t.min()), float(s)), max(float(t.max()), float(s))
            coordinates = Angle(problem.path, low, high, self.sigma_data)
        tau = coordinates.position(t.flatten())
        points = coordinates.points(tau)._replace(t=t.flatten())
        start = points.stage(slice(None), tuple(t.shape))  # type: ignore[arg-type]
        y = x / like(start.scale, x)
        slope = coordinates.slope(problem, y, start)
        weight = self._weight(y, y)
        size, rate = _norm(y, weight), _norm(slope, weight).clamp_min(1e-30)
        p = self.pair.order
        h = torch.minimum((0.01 / rate) ** (1 / (p + 1)), size.clamp_min(1.0) / rate)
        return EmbeddedState(
            tau,
            points.scale,
            _steady(h.nan_to_num(nan=1.0)),
            torch.ones_like(h),
            torch.zeros_like(h, dtype=torch.bool),
            torch.zeros_like(h, dtype=torch.bool),
            slope,
            coordinates,
        )

    def _weight(self, y: Tensor, new: Tensor) -> Tensor:
        rtol = max(self.rtol, 10 * torch.finfo(y.dtype).eps)
        return (self.rtol if self.atol is None else self.atol) + rtol * torch.maximum(y.abs(), new.abs())

    def _factor(self, error: Tensor, finite: Tensor, accepted: Tensor, state: EmbeddedState) -> Tensor:
        p = self.pair.order
        error = error.clamp_min(1e-10)
        grow = (0.9 * error ** (-0.7 / p) * state.error ** (0.4 / p)).clamp(0.2, 5)
        grow = torch.where(state.rejected, grow.clamp_max(1), grow)
        shrink = (0.9 * error ** (-1 / p)).clamp(0.2, 0.9)
        return _steady(torch.where(accepted, grow, torch.where(finite, shrink, 0.1)))


def _steady(h: Tensor) -> Tensor:
    """Rounded to float32: the last bit of a vectorised power depends on the place in the batch."""
    return h.to(torch.float32).to(torch.float64)


def _norm(y: Tensor, weight: Tensor) -> Tensor:
    # Detached: the sizes of the steps are no part of a gradient through the solution.
    return sample_rms((y / weight).detach())


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = slopes[0] * weights[0]
    for w, slope in zip(weights[1:], slopes[1:], strict=True):
        if w:
            total.add_(slope, alpha=w)
    return total
