"""Resolution before the loop: from solver, NFE and grid to the concrete solver and its times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from solvers.brownian_path import BrownianPath
from solvers.errors import InputError, InputTypeError
from solvers.noise import Noise, NoNoise, as_seeds
from solvers.problem import Equation, Problem, ReverseProcess
from solvers.registry import SOLVERS, find
from solvers.solver import Solver

MOST = 1_000_000  # evaluations or steps


def plan(
    problem: Problem,
    shape: Sequence[int],
    solver: str | Solver,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
) -> tuple[Solver, Tensor]:
    """The concrete solver of a run and its times.

    Args:
        problem: a ReverseProcess or an Equation.
        shape: shape of one sample.
        solver: a name in ``SOLVERS`` or a Solver; one that chooses among others is replaced by its choice.
        nfe: network evaluations for each sample, never exceeded; a cap for adaptive solvers.
        steps: number of grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.

    Returns:
        The solver, and its times (steps + 1,) float64 on the CPU.

    Raises:
        TypeError: neither a ReverseProcess nor an Equation, or no solver.
        ValueError: unknown names, NFE below the solver's minimum, bad grids, a problem that the solver cannot
            integrate.

    >>> import torch
    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> solver, times = plan(ReverseProcess(lambda x, t: x, straight), (2,), "pf-ode", nfe=20)
    >>> type(solver).__name__, len(times)
    ('SeenScale', 21)
    """
    solver = find(solver)
    check_suitable(problem, solver)
    steps = _steps(problem, solver, nfe, steps, grid)
    chosen, times = solver.resolve(problem, shape, grid, steps)
    if isinstance(problem, ReverseProcess) and problem.stochastic and times[-1] > times[0]:
        raise InputError(
            "a reverse process with noise runs towards the data, but the grid increases; encode with eta = 0"
        )
    if nfe is not None:
        needed = chosen.evaluations(len(times) - 1, ends_at_data(problem, times)) * problem.cost
        if needed > nfe:
            raise InputError(
                f"{len(times) - 1} steps of {type(solver).__name__} take {needed} evaluations, more than nfe={nfe}; "
                "use fewer steps or a larger nfe"
            )
    return chosen, times


def _steps(
    problem: Problem,
    solver: Solver,
    nfe: int | None,
    steps: int | None,
    grid: str | Tensor | Sequence[float] | None,
) -> int | None:
    """The number of intervals for an NFE; None if the grid has its own."""
    check_budget(nfe, steps)
    named = isinstance(solver.grid if grid is None else grid, str)
    if solver.adaptive and named:
        if steps is not None:
            raise InputError(f"{type(solver).__name__} chooses its own steps; leave steps out, or give nfe as a cap")
        return 2
    if steps is None and nfe is not None and (named or grid is None):
        return solver.steps_for(nfe // problem.cost)
    if steps is None and named:
        raise InputError("give the number of evaluations or of steps: nfe=20, or steps=20")
    return steps


def check_budget(nfe: int | None, steps: int | None) -> None:
    """Raise an error unless at most one of both is given, a whole number from 1 to ``MOST``.

    Raises:
        ValueError: both, or a number out of range.

    >>> check_budget(10**19, None)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: nfe is at most 1,000,000; got 10,000,000,000,000,000,000
    """
    if nfe is not None and steps is not None:
        raise InputError(f"give nfe or steps, not both; got nfe={nfe}, steps={steps}")
    for name, value in (("nfe", nfe), ("steps", steps)):
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise InputError(f"{name} is a whole number, at least 1; got {value!r}")
        if value is not None and value > MOST:
            raise InputError(f"{name} is at most {MOST:,}; got {value:,}")


def ends_at_data(problem: Problem, times: Tensor) -> bool:
    """Whether a run ends at sigma = 0, where the last step of every solver is x_0 = E[x_0 | x_t]."""
    return isinstance(problem, ReverseProcess) and float(problem.path(times[-1]).sigma) == 0


Move = Callable[[Any, Tensor, Tensor, Tensor, Any, Noise], tuple[Tensor, Tensor, Any]]
"""(problem, x, t, s, state, noise) -> (x, time reached, state): what ``Solver.step`` is."""


def finish(problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Tensor, Any]:
    """The step of every solver to sigma = 0: x_0 = E[x_0 | x_t]."""
    return problem.denoise(x, t), s, state


def moves(problem: Problem, solver: Solver, times: Tensor) -> list[Move]:
    """The function of each interval of a run: the solver's step, and ``finish`` in the last one to sigma = 0."""
    all_steps: list[Move] = [solver.step] * (len(times) - 1)
    if ends_at_data(problem, times) and not solver.owns_last_step:
        all_steps[-1] = finish
    return all_steps


def reserved(problem: Problem, times: Tensor) -> int:
    """Network evaluations of each sample that an adaptive solver leaves for the step to sigma = 0."""
    return problem.cost if ends_at_data(problem, times) else 0


def noise_of(
    problem: Problem, solver: Solver, seeds: Iterable[int] | Tensor | None, times: Tensor, batch: int
) -> Noise:
    """The noise of a run: Brownian paths of its samples, or none for a solver that draws none.

    Args:
        problem: whose clock the paths run on.
        solver: that draws.
        seeds: one integer per sample; 0 to batch - 1 by default.
        times: the grid.
        batch: number of samples.
    """
    keys = None if seeds is None else as_seeds(seeds, batch)
    if not solver.stochastic:
        return NoNoise()
    return BrownianPath.along(as_seeds(range(batch), batch) if keys is None else keys, problem.clock, times)


def check_batch(x: Tensor) -> None:
    """Check that x is a batch of samples.

    Raises:
        ValueError: another dtype than floating point, or fewer than two dimensions.
    """
    if not x.dtype.is_floating_point or x.ndim < 2:
        raise InputError(f"x must be floating point of shape (B, ...), rank >= 2; got {x.dtype} {tuple(x.shape)}")


def check_suitable(problem: Problem, solver: Solver) -> None:
    """Refuse a problem that a solver cannot integrate.

    Raises:
        TypeError: neither a ReverseProcess nor an Equation.
        ValueError: a kind of problem, or noise, that is not for this solver.
    """
    if not isinstance(problem, Equation | ReverseProcess):
        raise InputTypeError(
            f"expected a ReverseProcess or an Equation, got {type(problem).__name__}; a model becomes one by "
            "sde.probability_flow(model) or sde.reverse(model)"
        )
    if not isinstance(problem, solver.needs):
        names = " or ".join(kind.__name__ for kind in solver.needs)
        raise InputError(f"{type(solver).__name__} integrates a {names}, not a {type(problem).__name__}")
    if problem.stochastic and not solver.stochastic:
        able = ", ".join(name for name, other in SOLVERS.items() if other.stochastic)
        raise InputError(
            f"{type(solver).__name__} draws no noise, but the process has some; give it the probability-flow ODE "
            f"(eta = 0), or use a stochastic solver: {able}"
        )
