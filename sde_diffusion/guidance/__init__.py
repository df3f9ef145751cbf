"""Guidance: a score model pushed towards a condition, itself a score model; one paper in each file."""

from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.guidance.classifier_free import Guided, WithNull
from sde_diffusion.guidance.combine import projected, rescaled

__all__ = [
    "ClassifierGuided",
    "Guided",
    "WithNull",
    "projected",
    "rescaled",
]
