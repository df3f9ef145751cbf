"""The loop: ``steps`` yields every step of a run, ``solve`` runs it to the end.

A run is resolved first (``solvers.planning``), so the loop sees one solver and its times, and a problem that counts
network evaluations where the network is called (``solvers.run.meter``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from solvers.noise import Noise
from solvers.planning import check_batch, finish, moves, noise_of, plan, reserved
from solvers.problem import Problem, ReverseProcess
from solvers.run.adaptive_interval import AdaptiveInterval, per_sample
from solvers.run.meter import Sizes, metered
from solvers.run.solution import Solution, Status, Step, failed_at, stacked, updated_status
from solvers.solver import Solver


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
        problem: the equation to integrate.
        x: (B, ...) at times[0].
        times: the grid, see ``make_grid``.
        solver: the solver.
        noise: for stochastic solvers; seeds 0 to B - 1 when absent.
        nfe: cap on the evaluations of each sample, for adaptive solvers.
        errors: request local error estimates.

    Yields:
        A ``Step`` after every grid interval, and after every attempt of an adaptive solver.

    >>> from solvers import SOLVERS, Equation
    >>> for step in steps(Equation(lambda x, t: -x), torch.ones(1, 1), torch.tensor([0.0, 0.5, 1.0]), SOLVERS["euler"]):
    ...     print(float(step.t), float(step.x))
    0.5 0.5
    1.0 0.25
    """
    check_batch(x)
    solver, times = plan(problem, x.shape[1:], solver, grid=times)
    return _run(problem, x, times, solver, noise or noise_of(problem, solver, None, times, len(x)), nfe, errors)


def _run(
    problem: Problem, x: Tensor, times: Tensor, solver: Solver, noise: Noise, nfe: int | None, errors: bool
) -> Iterator[Step]:
    """The loop: every step of a solver that needs no resolution."""
    run = metered(problem, times, len(x))
    meter = run.meter
    # Towards the data, from noise: the way back, and a start that is data, have no noise to compare a state with. The
    # states of a table that was fitted to endpoints alone need not follow the process.
    fitted = solver.order == 0
    towards_data = isinstance(problem, ReverseProcess) and times[-1] < times[0] and len(times) > 2
    if towards_data and not solver.adaptive and not fitted:
        meter.sizes = Sizes()
    state = solver.init(run, times)
    status = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
    grid = times.unbind()
    reached = grid[0]
    for index, move in enumerate(moves(run, solver, times)):
        s = grid[index + 1]
        if solver.adaptive and move is not finish:
            meter.cap = None if nfe is None else nfe - reserved(problem, times)
            interval = AdaptiveInterval(solver, run, x, per_sample(reached, x), s, noise, status, errors)
            while interval.going():
                interval.attempt()
                yield interval.step(index)
            if not interval.reported:
                yield interval.step(index)
            x, reached, meter.cap = interval.x, interval.reached, None
            continue
        start, before = x, state
        # A sample that an adaptive solver has left on the way is denoised from the time it reached.
        x, _, state = move(run, start, grid[index] if reached.ndim == 0 else reached, s, before, noise)
        estimate = None
        if errors and move is not finish:
            estimate = solver.estimate(run, start, grid[index], s, before, state)
        status = updated_status(status, x)
        if meter.sizes is not None and index == len(grid) - 2:
            assert isinstance(problem, ReverseProcess)
            lost = meter.sizes.diverged(problem.path, x[0].numel(), solver.stochastic)
            if lost is not None and not (x.is_cpu and not bool(lost.any())):
                status = torch.where(lost & (status == Status.ok), Status.diverged, status)
        scales = solver.scales(state, len(x)) if index == len(grid) - 2 else None
        yield Step(index, s, x, meter.spent, status, meter.last, estimate, scales)


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
    """The solution of an equation from the first time of a grid to its last.

    Args:
        problem: a ReverseProcess or an Equation.
        x: starting points (B, ...), floating point; dtype and device are kept throughout.
        solver: a name in ``SOLVERS`` or a Solver.
        nfe: network evaluations for each sample, never exceeded; a cap for adaptive solvers.
        steps: number of grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seeds: one integer per sample for stochastic solvers, 0 to B - 1 when absent. A sample depends on its
            seed and not on its batch, and runs with other NFE follow the same Brownian path.
        trajectory: keep x at every time of the grid.
        errors: keep the local error estimates of the solver.
        on_step: called after every step, for progress.

    ``torch.compile`` of a function that calls ``solve`` compiles what stands around it: compile the network instead.

    Raises:
        ValueError: see the message: unknown names, NFE below the solver's minimum, bad grids, a process with noise
            given to a solver without.

    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> dirac = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), straight)
    >>> out = solve(dirac, torch.randn(2, 1), solver="ddim", nfe=4)
    >>> out.x.flatten().tolist(), out.nfe.tolist(), out.status
    ([3.0, 3.0], [4, 4], ['ok', 'ok'])
    """
    if torch.compiler.is_compiling():
        # The loop is Python that no graph can hold: it runs as it is, and a network that is compiled stays so.
        return torch.compiler.disable(solve)(  # type: ignore[no-untyped-call]
            problem, x, solver=solver, nfe=nfe, steps=steps, grid=grid, seeds=seeds, trajectory=trajectory,
            errors=errors, on_step=on_step,
        )  # fmt: skip
    check_batch(x)
    solver, times = plan(problem, x.shape[1:], solver, nfe, steps, grid)
    at = {-1: x}
    estimates, reached = [], []
    for step in _run(problem, x, times, solver, noise_of(problem, solver, seeds, times, len(x)), nfe, errors):
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
        failed_at(reached),
        times,
        torch.stack(states) if trajectory else None,
        stacked(estimates, x) if errors else None,
        step.scales,
    )
