"""Students have no probability flow: their output is the end of a large step, not E[x_0 | x_t]."""

from __future__ import annotations

from sde_diffusion.models.score_model import ScoreModel
from solvers.errors import InputError


def refuse_distilled(model: ScoreModel, aim: str) -> None:
    """Refuse a model that was distilled, or trained as a GAN, for a solver of its own.

    Args:
        model: any ScoreModel.
        aim: what a probability flow is needed for, to follow "to".

    Raises:
        ValueError: the model, or one that it wraps, has a ``sampler``.

    >>> from sde_diffusion.sde import VPSDE
    >>> refuse_distilled(ScoreModel(None, VPSDE()), "tune a solver to")
    """
    within: object = model
    while isinstance(within, ScoreModel):  # a guided or conditioned student is one too
        if within.sampler is not None:
            raise InputError(
                f"this model is a student of few steps, made for its own solver ({type(within.sampler).__name__}): it "
                f"has no score and no probability flow to {aim}. Give its teacher, or measure the samples of the "
                "student with `sdediff evaluate`"
            )
        within = getattr(within, "model", None)
