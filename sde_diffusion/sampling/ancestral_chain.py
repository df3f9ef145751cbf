r"""Ancestral sampling along the discrete chain x_T, ..., x_0 of DDPM.

A step has the small variance beta~ or the large one beta (Ho et al. 2020, section 3.2), or the variance that the
network learned. On a subset of the steps the same formulas hold with the beta of the longer steps (Nichol &
Dhariwal 2021, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM
from solvers import Step
from solvers import steps as steps_of
from solvers.diffusion.ancestral import DDPM as Ancestral
from solvers.errors import InputError
from solvers.noise import INDEPENDENT, as_seeds, standard_normal


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

    >>> import torch
    >>> sde = DDPM(steps=10, schedule="cosine")
    >>> dirac = ScoreModel(lambda x, t: torch.full_like(x, 3.0), sde, predicts="data")
    >>> ancestral(dirac, sde.prior((2, 1))).flatten().tolist()
    [3.0, 3.0]
    """
    sde = model.sde
    if not isinstance(sde, DDPM):
        raise InputError(f"the chain has the steps of a DDPM process; this model is on {type(sde).__name__}")
    keys = as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    times = sde.grid(sde.steps if steps is None else steps)
    process = model.sde.reverse(model, 1.0, **condition)
    for step in steps_of(process, x, times, Ancestral(variance), _StepNoise(keys, times)):
        if on_step is not None:
            on_step(step)
    return model.units.to_data(step.x)


@dataclass(frozen=True)
class _StepNoise:
    """Noise by the number of the step."""

    seeds: Tensor
    times: Tensor

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The noise of the step that starts at t."""
        return self.independent(x, t, int((self.times == t).nonzero()[0]))

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        """The noise of step k."""
        return standard_normal(self.seeds, x.shape[1:], INDEPENDENT, k).to(x)

    def rows(self, index: Tensor) -> _StepNoise:
        """The noise of some samples."""
        return _StepNoise(self.seeds[index], self.times)
