"""A run driven from outside: ``evaluations`` yields the points at which the caller evaluates the model.

In other libraries the loop owns the model: a pipeline calls its network, with its guidance and callbacks, and passes
the output to a scheduler. A solver's step calls the model one or several times. Here a call without an answer
interrupts the step, its argument is passed to the caller, and the step starts again with one more answer. Steps are
pure functions of their arguments and the noise is keyed, so this repeats arithmetic only: the samples are bit-equal
to those of ``solve``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.noise import Noise
from solvers.planning import check_batch, finish, moves, noise_of, plan, reserved
from solvers.problem import Problem
from solvers.run.adaptive_interval import AdaptiveInterval, per_sample
from solvers.run.meter import NFEMeter, metered
from solvers.solver import Solver


class _Point(NamedTuple):
    x: Tensor
    t: Tensor


class Request(_Point):
    """A requested evaluation: x (b, ...) and t (b,).

    The answer is like x: E[x_0 | x_t = x], or the drift of an Equation.

    Attributes:
        rows: indices of these samples in the batch (b,); None for all. Only an adaptive solver asks for a
            part.
    """

    rows: Tensor | None = None


class _Wanted(Exception):
    """An evaluation without an answer."""


class _Answers:
    """The model of a driven run: it returns the answers so far in turn and interrupts the step after them."""

    def __init__(self) -> None:
        self.known: list[Tensor] = []
        self.used = 0

    def __call__(self, x: Tensor, t: Tensor, **_: Tensor) -> Tensor:
        if self.used == len(self.known):
            raise _Wanted(x, t)
        self.used += 1
        return self.known[self.used - 1]


def evaluations(
    problem: Problem,
    x: Tensor,
    times: Tensor | Sequence[float],
    solver: str | Solver,
    noise: Noise | None = None,
    *,
    nfe: int | None = None,
) -> Generator[Request, Tensor, Tensor]:
    """Yields each (x, t) at which to evaluate the model, is sent E[x_0 | x_t = x], and returns the sample.

    Args:
        problem: the equation to integrate; its model and condition are not used. Of an Equation the drift is wanted.
        x: (B, ...) at times[0].
        times: the grid, for example of ``plan(problem, x.shape[1:], solver, nfe=20)``.
        solver: a name in ``SOLVERS`` or a Solver.
        noise: for stochastic solvers; that of the seeds 0 to B - 1 by default.
        nfe: cap on the evaluations of each sample, for adaptive solvers.

    Raises:
        ValueError: a problem that the solver cannot integrate, or an answer of another shape than x.

    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> run = evaluations(ReverseProcess(None, straight), torch.ones(1, 1), [1.0, 0.5, 0.0], "ddim")
    >>> x, t = next(run)
    >>> try:
    ...     while True:
    ...         x, t = run.send(torch.full_like(x, 3.0))
    ... except StopIteration as end:
    ...     print(end.value)
    tensor([[3.]])
    """
    check_batch(x)
    solver, times = plan(problem, x.shape[1:], solver, grid=times)
    return _driven(problem, x, times, solver, noise or noise_of(problem, solver, None, times, len(x)), nfe)


def _driven(
    problem: Problem, x: Tensor, times: Tensor, solver: Solver, noise: Noise, nfe: int | None
) -> Generator[Request, Tensor, Tensor]:
    answers = _Answers()
    run = metered(problem, times, len(x), model=answers)
    state = solver.init(run, times)
    status = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
    grid = times.unbind()
    reached = grid[0]
    for index, move in enumerate(moves(problem, solver, times)):
        s = grid[index + 1]
        if solver.adaptive and move is not finish:
            run.meter.cap = None if nfe is None else nfe - reserved(problem, times)
            interval = AdaptiveInterval(solver, run, x, per_sample(reached, x), s, noise, status)
            while interval.going():
                yield from _answered(run.meter, answers, interval.attempt)
            x, reached, run.meter.cap = interval.x, interval.reached, None
        else:
            t = grid[index] if reached.ndim == 0 else reached
            x, _, state = yield from _answered(run.meter, answers, partial(move, run, x, t, s, state, noise))
    return x


def _answered(meter: NFEMeter, answers: _Answers, call: Callable[[], Any]) -> Generator[Request, Tensor, Any]:
    """The result of a call in which every evaluation has an answer."""
    answers.known.clear()
    spent = meter.spent
    while True:
        meter.spent, answers.used = spent, 0
        try:
            return call()
        except _Wanted as wanted:
            request = Request(*wanted.args)
        request.rows = meter.rows
        answers.known.append((yield request))


def evaluation_times(
    problem: Problem, shape: Sequence[int], times: Tensor | Sequence[float], solver: str | Solver
) -> list[float]:
    """The times of the evaluations of a run, in order: a dry run of ``evaluations`` with zeros.

    Args:
        problem: the equation to integrate.
        shape: shape of one sample.
        times: the grid.
        solver: a name in ``SOLVERS`` or a Solver with fixed steps.

    Raises:
        ValueError: an adaptive solver, whose times depend on the sample.

    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> evaluation_times(ReverseProcess(None, straight), (2,), [1.0, 0.5, 0.0], "heun")
    [1.0, 0.5, 0.5]
    """
    run = evaluations(problem, torch.zeros(1, *shape, device="cpu"), times, solver)
    if plan(problem, shape, solver, grid=times)[0].adaptive:
        raise InputError("an adaptive solver chooses its times as it goes; name a solver with fixed steps")
    found: list[float] = []
    try:
        x, t = next(run)
        while True:
            found.append(float(t[0]))
            x, t = run.send(torch.zeros_like(x))
    except StopIteration:
        return found
