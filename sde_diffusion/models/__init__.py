"""Networks and exact densities, read as score models."""

from sde_diffusion.models.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel

__all__ = [
    "DiscreteModel",
    "EmpiricalData",
    "Gaussian",
    "GaussianMixture",
    "ScoreModel",
]
