r"""A run of a solver in the loop of another library: the run yields the points, and the pipeline evaluates the model.

``asked_times`` lists the times at which a run will want the model before it starts, since pipelines ask for them first.
``DrivenRun`` then takes one answer at a time. A pipeline may begin in the middle (img2img) or change x between two
evaluations (inpainting, callbacks). The run begins again from there, on the rest of the times: a history of values that
belong to another x is never used. Where that is not possible, inside a step, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import Solver, evaluation_times, evaluations, plan
from solvers.errors import InputError, StateError
from solvers.noise import Noise
from solvers.problem import ReverseProcess


@dataclass(frozen=True)
class Asked:
    """A planned run.

    Attributes:
        problem: whose path and noise level the run has.
        shape: shape of one sample.
        solver: the solver that was asked for.
        chosen: the solver that runs the whole grid.
        times: the grid, float64.
        at: the time of every evaluation, in order.
        nodes: for every evaluation the number of the step that it begins; None inside a step.
    """

    problem: ReverseProcess
    shape: tuple[int, ...]
    solver: Solver
    chosen: Solver
    times: Tensor
    at: tuple[float, ...]
    nodes: tuple[int | None, ...]


def asked_times(
    problem: ReverseProcess,
    shape: Sequence[int],
    solver: Solver,
    nfe: int | None = None,
    grid: str | Sequence[float] | Tensor | None = None,
) -> Asked:
    """The plan of a run with an NFE or on a grid.

    Args:
        problem: path and eta; the model is not used.
        shape: shape of one sample.
        solver: with fixed steps.
        nfe: evaluations, at most.
        grid: a name in ``GRIDS``, or the times.

    Raises:
        ValueError: as ``plan``; or a solver that chooses its steps as it goes.

    >>> from sde_diffusion import Flow
    >>> from solvers import SOLVERS
    >>> problem = ReverseProcess(lambda x, t: x, Flow())
    >>> found = asked_times(problem, (2,), SOLVERS["heun"], grid=[1.0, 0.5, 0.0])
    >>> found.at, found.nodes
    ((1.0, 0.5, 0.5), (0, None, 1))
    """
    shape = tuple(shape)
    if solver.adaptive:
        raise InputError(
            f"{type(solver).__name__} chooses its times as it goes, and a pipeline asks for them first; name a solver "
            f"with "
            "fixed steps"
        )
    chosen, times = plan(problem, shape, solver, nfe=nfe, grid=grid)
    chosen = chosen.on_grid()
    at = tuple(evaluation_times(problem, shape, times, chosen))
    if at and at[0] != float(times[0]):
        raise InputError(
            f"{type(solver).__name__} asks the model elsewhere than at the start, where a pipeline asks first; "
            "choose another solver, or tune with mean_start=False"
        )
    nodes: list[int | None] = [None] * len(at)
    for k in range(len(times) - 1):
        first = chosen.evaluations(k, finish=False) if k > 0 else 0
        if first < len(at) and at[first] == float(times[k]):
            nodes[first] = k
    return Asked(problem, shape, solver, chosen, times, at, tuple(nodes))


class DrivenRun:
    """A planned run, one answer of the model at a time.

    Args:
        asked: the plan.
        noise: of the times from a step on; what a stochastic solver draws.

    >>> from sde_diffusion import Flow
    >>> from solvers import SOLVERS
    >>> problem = ReverseProcess(lambda x, t: x, Flow())
    >>> run = DrivenRun(asked_times(problem, (1,), SOLVERS["ddim"], grid=[1.0, 0.5, 0.0]))
    >>> x = torch.ones(1, 1)
    >>> x = run.answer(x, torch.full((1, 1), 3.0))
    >>> x, run.answer(x, torch.full((1, 1), 3.0)), run.done
    (tensor([[2.]]), tensor([[3.]]), True)
    """

    def __init__(self, asked: Asked, noise: Callable[[Tensor], Noise | None] = lambda times: None) -> None:
        self.asked = asked
        self.noise = noise
        self.index = 0
        self.restarts = 0
        self._run: Generator[tuple[Tensor, Tensor], Tensor, Tensor] | None = None
        self._wanted: Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether the last answer was given."""
        return self.index == len(self.asked.at)

    def begin_at(self, index: int) -> None:
        """Begin with the evaluation of a number, instead of the first.

        Raises:
            ValueError: no such evaluation, or one inside a step.
        """
        self._node(index)
        self.index, self._run, self._wanted = index, None, None

    def answer(self, x: Tensor, x0: Tensor) -> Tensor:
        """Take E[x_0 | x_t = x] of the evaluation that is due; where the model is wanted next, or the sample.

        Args:
            x: where it was evaluated: what the last call returned, or another x at the same time.
            x0: the answer.

        Raises:
            RuntimeError: the run is done.
            ValueError: another x inside a step.
        """
        if self.done:
            raise StateError(f"the run of {len(self.asked.at)} evaluations is over; set the timesteps for another")
        if self._run is None or not _same(x, self._wanted):
            self._start(x)
        assert self._run is not None
        self.index += 1
        try:
            self._wanted = self._run.send(x0)[0]
        except StopIteration as end:
            self._run, self._wanted = None, None
            self.index = len(self.asked.at)
            found: Tensor = end.value
            return found
        return self._wanted

    def _node(self, index: int) -> int:
        asked = self.asked
        node = asked.nodes[index] if 0 <= index < len(asked.nodes) else None
        if node is None:
            begins = ", ".join(str(i) for i, k in enumerate(asked.nodes) if k is not None)
            raise InputError(
                f"evaluation {index} of {len(asked.at)} is no beginning of a step of {type(asked.solver).__name__} "
                f"(those "
                f"are {begins}); choose another strength or number of steps, or a solver with one evaluation in each "
                f"step"
            )
        return node

    def _start(self, x: Tensor) -> None:
        """Begin at the evaluation that is due, from x."""
        asked = self.asked
        node = self._node(self.index)
        chosen, times = asked.chosen, asked.times[node:]
        if node > 0:
            try:
                chosen, times = plan(asked.problem, asked.shape, asked.solver, grid=times)
                chosen = chosen.on_grid()
                at = tuple(evaluation_times(asked.problem, asked.shape, times, chosen))
            except ValueError as error:
                raise InputError(
                    f"{type(asked.solver).__name__} cannot begin at step {node + 1} of {len(asked.times) - 1}: {error}"
                ) from None
            if at != asked.at[self.index :]:
                raise InputError(
                    f"{type(asked.solver).__name__} asks at other times when it begins at step {node + 1}; use a "
                    f"solver "
                    "with one evaluation in each step"
                )
        self.restarts += self._run is not None
        self._run = evaluations(asked.problem, x, times, chosen, self.noise(asked.times))
        next(self._run)


def _same(x: Tensor, wanted: Tensor | None) -> bool:
    """Whether x is what was wanted; a copy in another dtype or on another device is."""
    if wanted is None or x.shape != wanted.shape:
        return False
    return x is wanted or torch.equal(x, wanted)
