"""The loop: ``steps`` yields every step of a run, ``solve`` runs it to the end.

The network is counted where it is called: ``NFEMeter`` wraps the problem's model, adds the cost of a call
to every sample in it, and checks the shape of what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from solvers.brownian_path import BrownianPath
from solvers.conditions import cut
from solvers.errors import InputError
from solvers.noise import Noise, as_seeds
from solvers.planning import ends_at_data, plan
from solvers.problem import KnownTimes, Problem, ReverseProcess
from solvers.solver import BudgetSpentError, LocalErrorEstimate, Solver


class Status(IntEnum):
    """How the run of a sample ended."""

    ok = 0
    nfe_cap = 1
    non_finite = 2
    dt_min = 3


class NFEMeter:
    """Counts network evaluations per sample, at the call.

    >>> meter = NFEMeter(lambda x, t: x, batch=3, cost=2)
    >>> _ = meter(torch.zeros(3, 2), torch.zeros(3))
    >>> meter.count
    tensor([2, 2, 2])
    """

    def __init__(self, model: Callable[..., Tensor], batch: int, cost: int) -> None:
        self.model, self.cost = model, cost
        self.count = torch.zeros(batch, dtype=torch.int64)
        self.rows: Tensor | slice = slice(None)
        self.cap: int | None = None

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Call the model for the samples in ``rows``.

        Raises:
            BudgetSpentError: the call would exceed ``cap`` for one of them.
        """
        if self.cap is not None and int(self.count[self.rows].max()) + self.cost > self.cap:
            raise BudgetSpentError(f"a sample has used its {self.cap} network evaluations")
        if condition and not isinstance(self.rows, slice):
            condition = cut(condition, len(self.count), self.rows)
        out = self.model(x, t, **condition)
        if isinstance(self.rows, slice):
            self.count = self.count + self.cost
        else:
            self.count = self.count.index_add(0, self.rows, torch.full_like(self.rows, self.cost))
        if out.shape != x.shape:
            raise InputError(
                f"the model must return the shape of its input: got {tuple(out.shape)} for x of {tuple(x.shape)}"
            )
        return out


@dataclass(frozen=True)
class Step:
    """What ``steps`` yields after each step.

    Attributes:
        index: number of the grid interval.
        t: the time reached: 0-d, or (B, 1, ..., 1) within an adaptive run.
        x: the batch there.
        nfe: network evaluations so far, int64 (B,).
        status: ``Status`` codes so far, uint8 (B,).
        estimate: the local error estimate that became known, if asked for and there is one.
    """

    index: int
    t: Tensor
    x: Tensor
    nfe: Tensor
    status: Tensor
    estimate: LocalErrorEstimate | None = None


@dataclass(frozen=True)
class Solution:
    """The result of a run.

    Attributes:
        x: (B, ...) at the last time.
        nfe: network evaluations of each sample, int64 (B,).
        codes: ``Status`` of each sample, uint8 (B,), on the device of x.
        failed_at: per sample the first time reached with x not finite, NaN where all is well, float64 (B,).
        times: the grid.
        trajectory: x at every time of the grid, or None.
        errors: local error estimates, or None: its fields t, s and error are (n, B) float64, one row
            for every step or round of attempts that left one; NaN where a sample made no step.
    """

    x: Tensor
    nfe: Tensor
    codes: Tensor
    failed_at: Tensor
    times: Tensor
    trajectory: Tensor | None = None
    errors: LocalErrorEstimate | None = None

    @property
    def status(self) -> list[str]:
        """How each sample ended: ok, nfe_cap, non_finite or dt_min."""
        return [Status(int(c)).name for c in self.codes.tolist()]


def steps(
    problem: Problem,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    noise: Noise | None = None,
    *,
    nfe: int | None = None,
    errors: bool = False,
) -> Iterator[Step]:
    """Integrate along a grid, one step at a time; progress, saving and stopping are the caller's loop.

    Args:
        problem: what to integrate.
        x: (B, ...) at times[0].
        times: the grid, see ``make_grid``.
        solver: how.
        noise: for stochastic solvers; seeds 0 to B - 1 when absent.
        nfe: cap on the evaluations of each sample, for adaptive solvers.
        errors: whether to ask the solver for its local error estimates.

    Yields:
        A ``Step`` after every grid interval, and after every attempt of an adaptive solver.

    >>> from solvers import SOLVERS, Equation
    >>> for step in steps(Equation(lambda x, t: -x), torch.ones(1, 1), torch.tensor([0.0, 0.5, 1.0]), SOLVERS["euler"]):
    ...     print(float(step.t), float(step.x))
    0.5 0.5
    1.0 0.25
    """
    _check(x)
    solver, times = plan(problem, x.shape[1:], solver, grid=times)
    noise = noise if noise is not None else _noise(problem, range(len(x)), times, len(x))
    meter = NFEMeter(problem.model, len(x), problem.cost)
    if isinstance(problem, ReverseProcess):
        problem = replace(problem, model=meter, path=KnownTimes(problem.path, times))
    else:
        problem = replace(problem, model=meter)
    at_data = ends_at_data(problem, times)
    state = solver.init(problem, times)
    status = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
    reached: Tensor = times[0]
    reserve = problem.cost if at_data else 0
    for index in range(len(times) - 1):
        t, s = times[index], times[index + 1]
        estimate = None
        if at_data and index == len(times) - 2 and not solver.owns_last_step:
            assert isinstance(problem, ReverseProcess)
            # A sample that was stopped on the way is denoised from the time it reached.
            x = problem.finish(x, t if reached.ndim == 0 else reached)
        elif solver.adaptive:
            if reached.ndim == 0:
                reached = reached.to(x.device).expand(len(x), *(1,) * (x.ndim - 1)).clone()
            meter.cap = None if nfe is None else nfe - reserve
            for attempt in _attempts(solver, problem, meter, x, reached, s, noise, status, errors):
                x, reached, estimate = attempt
                yield Step(index, reached, x, meter.count, status.clone(), estimate)
            meter.cap = None
            continue
        else:
            before, start = state, x
            x, _, state = solver.step(problem, start, t, s, before, noise)
            if errors:
                estimate = solver.estimate(problem, start, t, s, before, state)
        status = torch.where(_finite(x), status, Status.non_finite)
        yield Step(index, s, x, meter.count, status, estimate)


_steps = steps  # ``solve`` has an argument of that name


def _attempts(
    solver: Solver,
    problem: Problem,
    meter: NFEMeter,
    x: Tensor,
    reached: Tensor,
    s: Tensor,
    noise: Noise,
    status: Tensor,
    errors: bool,
) -> Iterator[tuple[Tensor, Tensor, LocalErrorEstimate | None]]:
    """Attempts of an adaptive solver over one interval; finished samples leave the batch.

    A sample that was stopped in an earlier interval stays where it is. ``status`` is updated in place.
    """
    rows = (status == Status.ok).nonzero()[:, 0]
    state: Any = None
    reported = False
    while True:
        if meter.cap is not None:
            # The first attempt of a sample may also evaluate its starting slope.
            calls = solver.evaluations(1, finish=False) if state is None else solver.stages
            next_cost = problem.cost * calls
            over = (meter.count[rows.cpu()] + next_cost > meter.cap).to(x.device)
            if bool(over.any()):
                status[rows[over]] = Status.nfe_cap
                rows, state = rows[~over], state if state is None else state.rows(~over)
                reported = False
        if len(rows) == 0:
            break
        meter.rows = rows.cpu()
        start, before = reached, state
        part, at, state = solver.step(problem, x[rows], start[rows], s, before, noise.rows(rows))
        reached = start.index_copy(0, rows, at)
        estimate = None
        if errors and (local := solver.estimate(problem, x[rows], start[rows], at, before, state)):
            error = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
            estimate = LocalErrorEstimate(start, reached, error.index_copy(0, rows, local.error))
        x = x.index_copy(0, rows, part)
        stalled = state.stalled
        if bool(stalled.any()):
            bad = ~_finite(state.slope)
            status[rows[stalled & bad]] = Status.non_finite
            status[rows[stalled & ~bad]] = Status.dt_min
        going = (at.reshape(-1) != s.to(at)) & ~stalled
        rows, state = rows[going], state.rows(going)
        reported = True
        yield x, reached, estimate
    meter.rows = slice(None)
    if not reported:
        # Every sample was stopped before, or the last ones just now by the cap.
        yield x, reached, None


def solve(
    problem: Problem,
    x: Tensor,
    *,
    solver: str | Solver = "pf-ode",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
    seeds: Iterable[int] | Tensor | None = None,
    trajectory: bool = False,
    errors: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Solution:
    """Run a solver from the first time of a grid to its last.

    Args:
        problem: a ReverseProcess or an Equation.
        x: starting points (B, ...), floating point; dtype and device are kept throughout.
        solver: a name in ``SOLVERS`` or a Solver.
        nfe: hard budget of network evaluations for each sample; a cap for adaptive solvers.
        steps: number of grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seeds: one integer per sample for stochastic solvers, 0 to B - 1 when absent. A sample depends on its
            seed and not on its batch, and runs with other budgets follow the same Brownian path.
        trajectory: whether to keep x at every time of the grid.
        errors: whether to keep the local error estimates that the solver has anyway.
        on_step: called after every step, for progress.

    Raises:
        ValueError: see the message: unknown names, budgets below the solver's minimum, bad grids, a process with noise
            given to a solver without.

    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> dirac = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), straight)
    >>> out = solve(dirac, torch.randn(2, 1), solver="ddim", nfe=4)
    >>> out.x.flatten().tolist(), out.nfe.tolist(), out.status
    ([3.0, 3.0], [4, 4], ['ok', 'ok'])
    """
    _check(x)
    solver, times = plan(problem, x.shape[1:], solver, nfe, steps, grid)
    if isinstance(problem, ReverseProcess) and problem.stochastic and times[-1] > times[0]:
        raise InputError(
            "a reverse process with noise runs towards the data, but the grid increases; encode with eta = 0"
        )
    noise = _noise(problem, range(len(x)) if seeds is None else seeds, times, len(x))
    at = {-1: x}
    estimates, reached = [], []
    for step in _steps(problem, x, times, solver, noise, nfe=nfe, errors=errors):
        if step.estimate is not None:
            estimates.append(step.estimate)
        if on_step is not None:
            on_step(step)
        at = {**at, step.index: step.x} if trajectory else {step.index: step.x}
        reached.append((step.t, step.status))
    states = list(at.values())
    return Solution(
        states[-1],
        step.nfe,
        step.status,
        _failed_at(reached),
        times,
        torch.stack(states) if trajectory else None,
        _stacked(estimates, x) if errors else None,
    )


def _failed_at(reached: list[tuple[Tensor, Tensor]]) -> Tensor:
    """From the times and codes after each step, the first time at which a sample was not finite; NaN without."""
    failed = torch.stack([status for _, status in reached]) == Status.non_finite
    filled = torch.zeros_like(failed[0], dtype=torch.float64)
    # Times of the whole batch are on the CPU; filling in a number does not wait for a device, as a copy would.
    times = torch.stack([filled + float(t) if t.ndim == 0 else t.reshape(-1).double() for t, _ in reached])
    first = times.gather(0, failed.to(torch.uint8).argmax(0, keepdim=True))[0]
    return first.masked_fill(~failed.any(0), torch.nan)


def _stacked(estimates: list[LocalErrorEstimate], x: Tensor) -> LocalErrorEstimate:
    """All estimates of a run as one, with fields (n, B)."""
    batch = len(x)
    if not estimates:
        return LocalErrorEstimate(*(torch.empty(0, batch, dtype=torch.float64, device=x.device) for _ in range(3)))
    rows = [[c.to(x.device, torch.float64).reshape(-1).expand(batch) for c in e] for e in estimates]
    return LocalErrorEstimate(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _noise(problem: Problem, seeds: Iterable[int] | Tensor, times: Tensor, batch: int) -> Noise:
    return BrownianPath.along(as_seeds(seeds, batch), problem.clock, times)


def _finite(x: Tensor) -> Tensor:
    # The largest magnitude is NaN where one entry is, and NaN is not below anything: a third of the time of asking
    # every entry.
    return torch.linalg.vector_norm(x.flatten(1), math.inf, 1) <= torch.finfo(x.dtype).max


def _check(x: Tensor) -> None:
    if not x.dtype.is_floating_point or x.ndim < 2:
        raise InputError(f"x must be floating point of shape (B, ...), rank >= 2; got {x.dtype} {tuple(x.shape)}")
