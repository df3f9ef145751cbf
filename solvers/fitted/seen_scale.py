r"""A solver that starts again where the first evaluations of a sample show data of a larger scale than 1.

Noise levels and coefficients were chosen for data of scale 1. A sample that shows a larger scale c
(``solvers.fitted.scale_of_data``) begins anew at its initial noise, as data of scale c, with the evaluations that
remain. Its first denoised sample is kept, so that nothing is lost where the first evaluation shows c, and one
evaluation where the second one does. A path that starts below 1.5 c is the end of a longer one; its run is UniPC's on
the levels of Karras et al. 2022.

Every sample has a c of its own and does not depend on its batch. From its new beginning on it is evaluated at times of
its own; a caller that evaluates the model at the times of the grid takes ``on_grid``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.data_units import InDataUnits, ScaledPath
from solvers.fitted.scale_of_data import noise_size, scales_of
from solvers.grids import make_grid
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver

_LOWEST = 0.5  # rho of the last evaluation that is looked at
_LATEST = 0.2  # share of the evaluations that may be spent before, where that is more than one
_LOW_START = 1.5  # rho of the start, in units of c, below which the run is UniPC's
_LEAST_START = 3.0  # and the least rho of the start in its units
_LOW = ExponentialAdams(2, weights="bh2", corrector=True, source="Zhao et al. 2023 (UniPC-2, bh2)")


class Group(NamedTuple):
    """Samples of one scale.

    Attributes:
        rows: their indices (b,); None for all.
        solver: that runs them.
        times: its grid.
        number: of its steps that are done.
        state: of the solver.
        scale: c, 1 for samples that have shown none.
    """

    rows: Tensor | None
    solver: Solver
    times: Tensor
    number: int
    state: Any
    scale: float

    @property
    def due(self) -> Tensor:
        """The time of the next evaluation."""
        return self.times[self.number]

    def of(self, x: Tensor) -> Tensor:
        """Its samples of a batch."""
        return x if self.rows is None else x[self.rows.to(x.device)]

    def advanced(self, problem: ReverseProcess, x: Tensor, value: Tensor, noise: Noise) -> tuple[Tensor, Group]:
        """One step of its samples x, with the answer of the model."""
        t, s = self.times[self.number], self.times[self.number + 1]
        known = _Known(problem.model, problem.path, problem.eta, value=value)
        solver = self.solver
        if float(problem.path(s).sigma) == 0 and not solver.owns_last_step:
            return value, self._replace(number=self.number + 1)
        x, _, state = solver.step(known, x, t, s, self.state, noise)
        return x, self._replace(number=self.number + 1, state=state)


class SeenRun(NamedTuple):
    """The state of a run.

    Attributes:
        groups: the samples by scale.
        start: x at the start; None once no sample may start again.
        first: the model's answer there.
        noise: rms(eps) of each sample, from the start.
    """

    groups: tuple[Group, ...]
    start: Tensor | None = None
    first: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class _Known(ReverseProcess):
    """A process at whose present point the model was evaluated."""

    value: Tensor = field(kw_only=True)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """The value."""
        return self.value


class ForScale(Solver):
    """A solver that can be made for data of a scale."""

    @abstractmethod
    def for_scale(self, scale: float) -> Solver:
        """The solver for data of a scale."""


@dataclass(frozen=True)
class SeenScale(Solver):
    """A deterministic solver with one evaluation a step, that starts again where the data are wide.

    Args:
        solver: for data of scale 1.
        chooser: resolves to the solvers of other scales.
        times: the grid of the solver.
    """

    solver: Solver
    chooser: ForScale
    times: tuple[float, ...]

    needs = (ReverseProcess,)
    data_independent = False
    owns_last_step = True

    @property
    def order(self) -> int:
        """The order of the solver."""
        return self.solver.order

    @property
    def source(self) -> str:
        """The source of the solver."""
        return self.solver.source

    @property
    def uses_corrector(self) -> bool:
        """Whether the solver has a corrector."""
        return self.solver.uses_corrector

    @property
    def sees_channels(self) -> bool:
        """Whether means over the entries of a channel enter."""
        return self.solver.sees_channels

    @property
    def grid(self) -> tuple[float, ...]:
        """The times of the solver."""
        return self.times

    def steps_for(self, evaluations: int, finish: bool = True) -> int:
        """Those of the solver."""
        return self.solver.steps_for(evaluations, finish)

    def on_grid(self) -> Solver:
        """The solver for data of scale 1."""
        return self.solver

    def scales(self, state: SeenRun, batch: int) -> Tensor:
        """The scale for which each sample ran."""
        found = torch.ones(batch, dtype=torch.float64, device="cpu")
        for group in state.groups[1:]:
            found[group.rows] = group.scale
        return found

    def init(self, problem: ReverseProcess, times: Tensor) -> SeenRun:
        """The state before the first evaluation.

        Raises:
            ValueError: another grid.
        """
        if tuple(times.tolist()) != self.times:
            raise InputError("this solver has its own times; leave out the grid")
        return SeenRun((Group(None, self.solver, times, 0, self.solver.init(problem, times), 1.0),))

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: SeenRun, noise: Noise
    ) -> tuple[Tensor, Tensor, SeenRun]:
        """One evaluation of every sample at the time where its group is, and one step of each group."""
        usual = state.groups[0]
        value = problem.denoise(x, _due(state.groups, x))
        if usual.number == 0:
            sigma = float(problem.path(usual.times[0]).sigma)
            state = state._replace(start=x, first=value, noise=noise_size(x, sigma))
        state = self._looked(problem, x, value, state)
        usual, *others = state.groups
        # The usual group runs all samples, since its state is that of all; those of the others are replaced.
        out, usual = usual.advanced(problem, x, value, noise)
        groups = [usual]
        if others:
            out = out.clone()
        for group in others:
            at, answer = x, value
            if group.number == 0 and state.start is not None and state.first is not None:
                at, answer = state.start, state.first
            part, after = group.advanced(problem, group.of(at), group.of(answer), noise)
            assert group.rows is not None
            out[group.rows.to(x.device)] = part
            groups.append(after)
        return out, s, state._replace(groups=tuple(groups))

    def _looked(self, problem: ReverseProcess, x: Tensor, value: Tensor, state: SeenRun) -> SeenRun:
        """The state with the samples that start again in groups of their own."""
        usual, *others = state.groups
        if state.start is None or state.first is None or state.noise is None:
            return state
        alpha, sigma = (float(c) for c in problem.path(usual.due)[:2])
        steps = len(self.times) - 1
        if sigma < _LOWEST * alpha or usual.number > max(1, _LATEST * steps):
            return SeenRun(state.groups)
        scales = scales_of(x, (value, state.first), state.noise, (alpha, sigma))
        for group in others:
            scales[group.rows] = 0
        for scale in sorted({*scales.tolist()} - {0.0}):
            solver, times = self._for_scale(problem, tuple(x.shape[1:]), scale, steps - usual.number)
            rows = (scales == scale).nonzero()[:, 0]
            others.append(Group(rows, solver, times, 0, solver.init(problem, times), scale))
        return state._replace(groups=(usual, *others))

    def _for_scale(
        self, problem: ReverseProcess, shape: tuple[int, ...], scale: float, steps: int
    ) -> tuple[Solver, Tensor]:
        """The solver of a number of steps for data of a scale, and its times."""
        start = torch.tensor(self.times[0], dtype=torch.float64, device="cpu")
        alpha, sigma = (float(c) for c in problem.path(start)[:2])
        if sigma < _LOW_START * scale * alpha:
            scale = min(scale, sigma / alpha / _LEAST_START)
            own = replace(problem, path=ScaledPath(problem.path, scale))
            return InDataUnits(_LOW, scale), make_grid("karras", own, steps)
        return self.chooser.for_scale(scale).resolve(problem, shape, None, steps)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: SeenRun, after: SeenRun
    ) -> LocalErrorEstimate | None:
        """The estimate of the solver; None once samples have started again, and for a last step that is the model's."""
        models = float(problem.path(s).sigma) == 0 and not self.solver.owns_last_step
        if models or len(after.groups) > 1:
            return None
        return self.solver.estimate(problem, x, t, s, before.groups[0].state, after.groups[0].state)


def _due(groups: Iterable[Group], x: Tensor) -> Tensor:
    """The times of the next evaluation: 0-d, or one for each sample, (B, 1, ..., 1)."""
    usual, *others = groups
    if not others:
        return usual.due
    due = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=torch.float64, device="cpu")
    for group in groups:
        due[group.rows] = group.due
    return due.to(x.device)
