r"""A start from noised data instead of pure noise (Meng et al. 2022, SDEdit).

The run starts at t = strength from x_t = alpha x + sigma eps, and all evaluations of a run lie below this t.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.settings import DEFAULT_NFE, SamplingRun, SamplingSettings
from solvers import GRIDS
from solvers.errors import InputError, choose
from solvers.grids import make_grid
from solvers.noise import FORWARD, standard_normal
from solvers.planning import check_budget, plan
from solvers.problem import ReverseProcess

_FINEST = 100_000  # intervals of the whole grid of which a part is taken


def times_from(process: ReverseProcess, start: float, steps: int, grid: str = "quadratic") -> Tensor:
    """Times from ``start`` to 0 in a number of steps: the coarsest named grid with as many below ``start``, float64.

    Raises:
        ValueError: a start so near to 0 that no grid of 100,000 steps has as many.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.zeros(1, 1), std=1.0, sde=VPSDE())
    >>> times_from(model.sde.probability_flow(model), 0.25, 2, "uniform").tolist()
    [0.25, 0.2, 0.0]
    """

    def below(whole: int) -> Tensor:
        times = make_grid(grid, process, whole)
        return times[times < start * (1 - 1e-9)]

    most = steps
    while len(below(most)) < steps:
        most *= 2
        if most > _FINEST:
            raise InputError(f"t = {start:g} is too near to the data for {steps} steps of the grid '{grid}'")
    # Fitted grids need not be nested: a search by halves finds one that has enough steps, if not the coarsest.
    whole = bisect.bisect_left(range(most), True, lo=steps - 1, key=lambda n: len(below(n + 1)) >= steps) + 1
    return torch.cat([torch.tensor([start], dtype=torch.float64, device="cpu"), below(whole)[-steps:]])


@dataclass(frozen=True)
class NoisedStart:
    """Data from which samples start, and the time to which they are noised.

    Args:
        x: data (m, ...): sample k starts from row k mod m.
        strength: the time, in (0, 1]: near 0 nothing changes, at 1 nothing is kept.

    Raises:
        ValueError: a strength outside (0, 1], or data that are no batch of finite floats.
    """

    x: Tensor
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(f"strength is the time to which x is noised, in (0, 1]; got {self.strength}")
        x = self.x
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.ndim < 2 or not bool(x.isfinite().all()):
            raise InputError("x is a batch of finite floating point samples (B, ...)")
        if len(x) == 0:
            raise InputError("x has no samples")

    def check_shape(self, shape: Iterable[int] | None) -> None:
        """Refuse data that are no samples of a model.

        Raises:
            ValueError: another shape.
        """
        own = tuple(self.x.shape[1:])
        if shape is not None and own != tuple(shape):
            raise InputError(f"x has samples of shape {own}, the model of shape {tuple(shape)}")

    def resolve(self, settings: SamplingSettings, model: ScoreModel, shape: Sequence[int]) -> SamplingRun:
        """The run of settings from the strength to the data; an adaptive solver chooses its steps there.

        Raises:
            ValueError: a solver for one grid alone, or times that do not start at the strength.
        """
        solver = settings.chosen()
        eta = float(solver.stochastic) if settings.eta is None else settings.eta
        process = model.sde.reverse(model, eta)
        if isinstance(solver.grid, tuple):
            raise InputError(
                f"{type(solver).__name__} is made for its own times from t = 1; from noised data use another solver, "
                "such as dpm++2m-sde"
            )
        given = settings.grid
        if given is not None and not isinstance(given, str):
            if float(given[0]) != self.strength:
                raise InputError(f"the times start at t = {float(given[0]):g}, not at the strength {self.strength:g}")
            return replace(settings, partial=True).resolve(model, shape)
        if solver.adaptive:
            times = make_grid(solver.grid, process, 2)  # it ends its own steps at the second of them
            if not times[1] < self.strength:
                raise InputError(f"t = {self.strength:g} is too near to the data for {type(solver).__name__}")
            times[0] = self.strength
            return SamplingRun(solver, times, eta, settings.nfe)
        check_budget(settings.nfe, settings.steps)
        nfe = DEFAULT_NFE if settings.nfe is None and settings.steps is None else settings.nfe
        steps = solver.steps_for(nfe // process.cost) if nfe is not None else settings.steps
        named = str(solver.grid) if given is None else given
        choose(named, GRIDS, "grid")
        assert steps is not None
        chosen, times = plan(process, shape, solver, grid=times_from(process, self.strength, steps, named))
        return SamplingRun(chosen, times, eta, nfe)

    def noised(self, model: ScoreModel, seeds: Tensor, start: int) -> Tensor:
        """x_t of samples start to start + len(seeds) - 1, in the model's units and dtype and on its device."""
        rows = torch.arange(start, start + len(seeds), device=self.x.device) % len(self.x)
        z = model.from_samples(self.x[rows])
        z = z.to(model.device, model.state_dtype if model.dtype else z.dtype)
        return model.sde.perturb(z, self.strength, standard_normal(seeds, z.shape[1:], FORWARD).to(z))
