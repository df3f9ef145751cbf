"""Guidance: a score model pushed towards a condition, itself a score model; one paper in each file."""

from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.guidance.classifier_free import Guided, WithNull
from sde_diffusion.guidance.combine import projected, rescaled
from sde_diffusion.guidance.ddnm import DDNM
from sde_diffusion.guidance.diffpir import DiffPIR
from sde_diffusion.guidance.dps import DPS
from sde_diffusion.guidance.moment_matching import MomentMatching
from sde_diffusion.guidance.observations import (
    Blur,
    Custom,
    Downsample,
    FourierMask,
    Grey,
    Mask,
    Matrix,
    Operator,
    adjoint_error,
)
from sde_diffusion.guidance.observed import Observed, residual_rms
from sde_diffusion.guidance.pigdm import PiGDM
from sde_diffusion.guidance.plus_plus import GuidedPlusPlus
from sde_diffusion.guidance.replacement import Replacement
from sde_diffusion.guidance.twisted import Particles, twisted_particles

METHODS: dict[str, type[Observed]] = {
    "replacement": Replacement,
    "ddnm": DDNM,
    "diffpir": DiffPIR,
    "dps": DPS,
    "pigdm": PiGDM,
    "moment": MomentMatching,
}
"""The methods for linear observations, by name."""

__all__ = [
    "DDNM",
    "DPS",
    "METHODS",
    "Blur",
    "ClassifierGuided",
    "Custom",
    "DiffPIR",
    "Downsample",
    "FourierMask",
    "Grey",
    "Guided",
    "GuidedPlusPlus",
    "Mask",
    "Matrix",
    "MomentMatching",
    "Observed",
    "Operator",
    "Particles",
    "PiGDM",
    "Replacement",
    "WithNull",
    "adjoint_error",
    "projected",
    "rescaled",
    "residual_rms",
    "twisted_particles",
]
