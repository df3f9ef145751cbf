"""The settings of a sampling run as one object, and the same resolved for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from solvers import ReverseProcess, Solver, plan
from solvers.errors import InputError, require_whole
from solvers.plugin import find_solver

DEFAULT_NFE = 20
DEFAULT_SOLVER = "pf-ode"
_SEED_STRIDE = 2**32

Grid = str | Tensor | Sequence[float] | None


class SamplingRun(NamedTuple):
    """The resolved settings for a model and a shape of samples.

    Attributes:
        solver: the solver that runs.
        times: its times, float64 (steps + 1,).
        eta: the noise level of the reverse process.
        nfe: network evaluations for each sample; None where the times say how many steps there are.
    """

    solver: Solver
    times: Tensor
    eta: float
    nfe: int | None

    def process(self, model: ScoreModel, condition: dict[str, Any] | None = None) -> ReverseProcess:
        """The reverse process of the model, with the conditions of a batch."""
        return model.sde.reverse(model.for_run(self.solver, self.times, self.eta), self.eta, **(condition or {}))


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling: the fields are the arguments of ``sample``.

    Args:
        solver: a name in ``SOLVERS``, ``path/to/file.py:Name``, or a Solver; by default the model's own sampler if it
            was distilled, else pf-ode.
        nfe: network evaluations per sample; 20 unless steps or the times are given.
        steps: grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves from 1 to 0, or None for the solver's own.
        eta: noise level of the reverse process; 1 for stochastic solvers and 0 for the others by default.
        seed: seed of the run; sample k depends on (seed, k) alone.
        batch_size: samples integrated together.
        name: name of the solver in messages and records.
        partial: whether times that do not lead from 1 to 0 are taken, see ``sample``.

    Raises:
        ValueError: a batch of less than one sample, or times that do not lead from 1 to 0.

    >>> SamplingSettings("ddim", nfe=10).called
    'ddim'
    >>> SamplingSettings(grid=[1.0, 0.5])
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: samples start from noise at t = 1 and end as data at t = 0; this grid goes...
    """

    solver: str | Solver | None = None
    nfe: int | None = None
    steps: int | None = None
    grid: Grid = None
    eta: float | None = None
    seed: int = 0
    batch_size: int = 256
    name: str | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        require_whole("batch_size", self.batch_size, 1, 2**53)
        if self.grid is not None and not isinstance(self.grid, str):
            times = torch.as_tensor(self.grid, dtype=torch.float64, device="cpu").tolist()
            object.__setattr__(self, "grid", tuple(times))
            if not self.partial:
                check_full_grid(times)

    @property
    def called(self) -> str:
        """The name of the solver."""
        solver = DEFAULT_SOLVER if self.solver is None else self.solver
        return self.name or (solver if isinstance(solver, str) else type(solver).__name__)

    def chosen(self, model: ScoreModel | None = None) -> Solver:
        """The solver that these settings name, or the default of a model."""
        if self.solver is None and model is not None and model.sampler is not None:
            return model.sampler
        solver = DEFAULT_SOLVER if self.solver is None else self.solver
        return find_solver(solver)[1] if isinstance(solver, str) else solver

    def resolve(self, model: ScoreModel, shape: Sequence[int]) -> SamplingRun:
        """The run of these settings on a model, with the solver's defaults for settings that are not given.

        Raises:
            ValueError: unknown names, or an NFE that does not fit the solver; see ``solvers.plan``.

        >>> from sde_diffusion import GaussianMixture, VPSDE
        >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.1, sde=VPSDE())
        >>> run = SamplingSettings("ddpm").resolve(model, (1,))
        >>> len(run.times), run.eta
        (21, 1.0)
        """
        solver = self.chosen(model)
        named = isinstance(solver.grid if self.grid is None else self.grid, str)
        none_given = self.nfe is None and self.steps is None
        nfe = solver.usual_nfe if none_given and named and not solver.adaptive else self.nfe
        eta = float(solver.stochastic) if self.eta is None else self.eta
        chosen, times = plan(model.sde.reverse(model, eta), shape, solver, nfe, self.steps, self.grid)
        return SamplingRun(chosen, times, eta, nfe)

    def with_solver(self, solver: Solver, name: str) -> SamplingSettings:
        """These settings with another solver, and what it is called."""
        return replace(self, solver=solver, name=name)


def check_full_grid(times: Sequence[float]) -> None:
    """Refuse times that do not lead from noise at t = 1 to data at t = 0.

    Raises:
        ValueError: such times. Those outside [0, 1] raise in ``make_grid``.
    """
    if len(times) == 0:
        return
    first, last = float(times[0]), float(times[-1])
    if min(first, last) >= 0 and max(first, last) <= 1 and (first, last) != (1.0, 0.0):
        raise InputError(
            f"samples start from noise at t = 1 and end as data at t = 0; this grid goes from {first:g} to "
            f"{last:g}. For a part of the way, or the way back, use --partial (partial=True), solvers.solve or "
            f"sde_diffusion.encode"
        )


def seeds_of(seed: int, n: int, start: int = 0) -> Tensor:
    """The seeds of samples start to start + n - 1 of a run.

    Raises:
        ValueError: a seed outside [0, 2^31), or a number of samples outside [0, 2^31].

    >>> seeds_of(0, 3)
    tensor([0, 1, 2])
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be an integer from 0 to 2^31 - 1; got {seed}")
    require_whole("n", n, 0, 2**31)
    return seed * _SEED_STRIDE + torch.arange(start, start + n, device="cpu")
