"""Sample quality: samples read or drawn, measured against a reference, with intervals and an error budget."""

from sde_diffusion.evaluation.budget import Budget, error_budget
from sde_diffusion.evaluation.curve import CurvePoint, plot, quality
from sde_diffusion.evaluation.feature_sampler import Drawn, FeatureSampler
from sde_diffusion.evaluation.read import read_samples
from sde_diffusion.evaluation.result import Evaluation
from sde_diffusion.evaluation.score import evaluate
from sde_diffusion.sampling.settings import SamplingSettings

__all__ = [
    "Budget",
    "CurvePoint",
    "Drawn",
    "Evaluation",
    "FeatureSampler",
    "SamplingSettings",
    "error_budget",
    "evaluate",
    "plot",
    "quality",
    "read_samples",
]
