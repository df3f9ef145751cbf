r"""Samples of a cascade: stage by stage, each conditioned on what the one before has drawn.

The image before may be noised to a level s before it is a condition (Ho et al. 2022, section 4.2); the network of the
stage receives s. This covers errors that no training image has, and takes detail from the image before, which the
stage then draws anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.conditions import Conditions
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.sampler import check_status, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from solvers import Solver
from solvers.errors import InputError

_APART = 1_000_003  # between the seeds of the stages


@dataclass(frozen=True)
class StageModel:
    """A stage that is ready to draw.

    Attributes:
        model: takes the condition ``image``, but for the first.
        nfe: evaluations of a sample.
        noise: level to which the image before is noised.
        solver: a name in ``SOLVERS`` or a solver.
    """

    model: ScoreModel
    nfe: int
    noise: float = 0.0
    solver: str | Solver | None = None


@torch.no_grad()
def sample_cascade(
    stages: Sequence[StageModel],
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[float], None] | None = None,
) -> list[Tensor]:
    """The samples of each stage, (n, *shape) in units of the data; sample k depends on (seed, k) alone.

    Args:
        stages: from the smallest.
        n: number of samples.
        seed: seed of the run; each stage has noise of its own.
        batch_size: samples integrated together.
        progress: called with the share of the evaluations that are done.

    Raises:
        ValueError: no stages, or a stage whose condition has another shape than the samples before.
        FloatingPointError: samples that are not finite.
    """
    if not stages:
        raise InputError("a cascade has one stage at least")
    check_chain([stage.model for stage in stages])
    total, done = sum(stage.nfe for stage in stages), 0
    found: list[Tensor] = []
    for number, stage in enumerate(stages):

        def share(part: float, done: int = done, nfe: int = stage.nfe) -> None:
            if progress is not None:
                progress((done + part * nfe) / total)

        before = found[-1] if found else None
        found.append(draw_stage(stage, number, before, n, seed=seed, batch_size=batch_size, progress=share))
        done += stage.nfe
    return found


@torch.no_grad()
def draw_stage(
    stage: StageModel,
    number: int,
    before: Tensor | None,
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """The samples of one stage, (n, *shape) in units of the data.

    Args:
        stage: the stage.
        number: counted from 0.
        before: the samples of the stage before; None for the first.
        n: number of samples.
        seed: seed of the run.
        batch_size: samples integrated together.
        progress: called with the share of the evaluations of the stage that are done.

    Raises:
        FloatingPointError: samples that are not finite.
    """
    condition: dict[str, Any] = {}
    own = (seed + number * _APART) % 2**31
    if before is not None:
        given = Conditions(f"stage {number}", before.float().cpu(), "image")
        condition = GivenCondition(given, stage.noise, own).rows(stage.model.network, n)
        condition = {name: value.to(before.dtype) for name, value in condition.items()}
    settings = SamplingSettings(stage.solver, stage.nfe, seed=own, batch_size=batch_size)
    parts: list[Tensor] = []
    for part in sample_batches(stage.model, n, settings, condition=condition, on_share=progress):
        check_status(part, start=len(parts) * batch_size)
        parts.append(part.x)
    return torch.cat(parts)


def check_chain(models: Sequence[ScoreModel]) -> None:
    """Refuse models of which one does not take the samples of the one before.

    Raises:
        ValueError: with the shapes.
    """
    for number, model in enumerate(models):
        settings = getattr(model.network, "settings", None)
        if not isinstance(settings, dict):
            continue  # a network of one's own says its conditions itself
        wanted = settings.get("image")
        before = None if number == 0 else models[number - 1].shape
        if (None if wanted is None else tuple(wanted)) != before:
            given = "no image" if before is None else f"images of shape {before}"
            taken = "no image" if wanted is None else tuple(wanted)
            raise InputError(
                f"stage {number + 1} of the cascade is conditioned on {taken}, and the stage before gives {given}"
            )
