r"""Ancestral sampling along the discrete chain x_T, ..., x_0 of DDPM.

A step has the small variance beta~ or the large one beta (Ho et al. 2020, section 3.2), or the variance that the
network learned. On a subset of the steps the same formulas hold with the beta of the longer steps (Nichol &
Dhariwal 2021, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM
from sde_diffusion.sde.base import per_sample
from sde_diffusion.sde.step_posterior import first_variance, learned_log_variance, posterior
from solvers import ReverseProcess, Solver, Step
from solvers import steps as steps_of
from solvers.errors import InputError, choose
from solvers.noise import INDEPENDENT, Noise, as_seeds, standard_normal

VARIANCES = ("small", "large", "learned")


def ancestral(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int | None = None,
    variance: str = "small",
    seeds: Iterable[int] | Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
    **condition: Any,
) -> Tensor:
    """Walk the reverse chain from x_T to x_0, in units of the data.

    Args:
        model: on a DDPM process.
        x: x_T, (B, ...), standard normal: ``model.sde.prior``.
        steps: number of evenly spaced steps; all T if None.
        variance: "small", "large" or "learned".
        seeds: one integer per sample, 0 to B - 1 by default.
        on_step: called after every step, with the network evaluations so far (``Step.nfe``).
        condition: passed on to the network.

    Raises:
        ValueError: another process, an unknown variance, or one that the network did not learn.

    >>> sde = DDPM(steps=10, schedule="cosine")
    >>> dirac = ScoreModel(lambda x, t: torch.full_like(x, 3.0), sde, predicts="data")
    >>> ancestral(dirac, sde.prior((2, 1))).flatten().tolist()
    [3.0, 3.0]
    """
    sde = model.sde
    if not isinstance(sde, DDPM):
        raise InputError(f"the chain has the steps of a DDPM process; this model is on {type(sde).__name__}")
    choose(variance, dict.fromkeys(VARIANCES), "variance")
    keys = as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    times = sde.grid(sde.steps if steps is None else steps)
    watched = _WithVariance(model)
    process = replace(model.sde.reverse(model, 1.0, **condition), model=watched)
    for step in steps_of(process, x, times, _Chain(sde, variance, watched), _StepNoise(keys)):
        if on_step is not None:
            on_step(step)
    return model.units.to_data(step.x)


class _WithVariance:
    """The denoiser of a model, which keeps what the network said of the variance."""

    def __init__(self, model: ScoreModel) -> None:
        self.model = model
        self.extra: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        output, self.extra = self.model.outputs(x, t, **condition)
        return self.model.denoised_from(output, x, t)


@dataclass(frozen=True)
class _StepNoise:
    """Noise by the number of the step."""

    seeds: Tensor

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Not used by the chain."""
        raise NotImplementedError

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        """The noise of step k."""
        return standard_normal(self.seeds, x.shape[1:], INDEPENDENT, k).to(x)

    def rows(self, index: Tensor) -> _StepNoise:
        """The noise of some samples."""
        return _StepNoise(self.seeds[index])


@dataclass(frozen=True)
class _Chain(Solver):
    """The steps of the chain; the state is their number."""

    sde: DDPM
    variance: str
    watched: _WithVariance

    order = 1
    stochastic = True
    needs = (ReverseProcess,)
    source = "Ho et al. 2020, algorithm 2"

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: int | None, noise: Noise
    ) -> tuple[Tensor, Tensor, int]:
        """A draw from the posterior of the step, given the denoised x."""
        k = state or 0
        x0 = problem.denoise(x, t)
        q = posterior(self.sde, t, s)
        mean = q.from_data * x0 + q.from_x * x
        xi = noise.independent(x, t, k)
        if self.variance != "learned":
            std = torch.sqrt(q.small if self.variance == "small" else q.large)
            return mean + per_sample(std, x) * xi, s, k + 1
        if self.watched.extra is None:
            raise InputError("the network has no second half of channels, so it learned no variance; use 'small'")
        log_variance = learned_log_variance(q, first_variance(self.sde), self.watched.extra)
        return mean + torch.exp(log_variance / 2) * xi, s, k + 1
