"""A run of the reverse process with all its states, and the model's prediction from each, as a film shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.film import Reverse
from sde_diffusion.sampling.sampler import batches
from sde_diffusion.sampling.settings import SamplingSettings
from solvers import Solution, solve
from solvers.conditions import cut
from solvers.errors import InputError

FILMED = 16  # samples in a film of images or signals; 2,000 of points and vectors


def default_filmed(shape: tuple[int, ...]) -> int:
    """Samples in a film: 16 images or signals, 2,000 points or vectors.

    >>> default_filmed((1, 8, 8)), default_filmed((2,))
    (16, 2000)
    """
    return 2000 if len(shape) == 1 else FILMED


@torch.no_grad()
def reverse_run(
    model: ScoreModel, settings: SamplingSettings, n: int, condition: Mapping[str, Any] | None = None
) -> tuple[Solution, Reverse]:
    """The states x_t of n samples at each time of a run, and E[x_0 | x_t] there, in the units of the data.

    The samples are those of ``sample`` with these settings. E[x_0 | x_t] takes an evaluation of its own at each time,
    because not every solver evaluates the model at its states.

    Raises:
        ValueError: a solver that chooses its steps for each sample, or an unknown shape.
    """
    if settings.chosen().adaptive:
        raise InputError(
            f"{settings.called} chooses its own steps, sample by sample; film a fixed-step solver, such as ddim"
        )
    whole = SamplingSettings(
        settings.solver, settings.nfe, settings.steps, settings.grid, settings.eta, settings.seed, max(n, 1),
        settings.name, settings.partial,
    )  # fmt: skip
    ((process, x1, seeds, run),) = batches(model.eval(), n, whole, None, condition)
    out = solve(process, x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds, trajectory=True)
    assert out.trajectory is not None
    given = cut(model.bind(dict(condition or {})), n, torch.arange(n, device="cpu"), x1.device)
    predicted: list[Tensor] = []
    for x, t in zip(out.trajectory, out.times.tolist(), strict=True):
        at = torch.full((n,), t, dtype=torch.float64, device="cpu")
        predicted.append(model.denoise(x, at, **given) if t > 0 else x)
    states, denoised = (_samples(model, part) for part in (out.trajectory, torch.stack(predicted)))
    return out, Reverse(states, denoised, out.times.tolist())


def _samples(model: ScoreModel, states: Tensor) -> Tensor:
    """States (K, B, ...) as ``sample`` returns them: those of a latent model are decoded."""
    made = model.to_samples(states.flatten(0, 1)).float().cpu()
    return made.reshape(*states.shape[:2], *made.shape[1:])
