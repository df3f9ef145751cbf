"""Distances between sets of samples, each with its standard error."""

from sde_diffusion.evaluation.metrics.estimate import Estimate, standard_error
from sde_diffusion.evaluation.metrics.frechet import frechet_distance, unbiased_frechet_distance
from sde_diffusion.evaluation.metrics.inception import inception_score
from sde_diffusion.evaluation.metrics.mmd import kid, squared_mmd
from sde_diffusion.evaluation.metrics.moments import Moments
from sde_diffusion.evaluation.metrics.nearest_neighbours import Neighbours, neighbours
from sde_diffusion.evaluation.metrics.paired import frechet_difference
from sde_diffusion.evaluation.metrics.registry import METRICS, Sets, measure
from sde_diffusion.evaluation.metrics.two_sample import p_value, two_sample_accuracy
from sde_diffusion.evaluation.metrics.wasserstein import sliced_wasserstein

__all__ = [
    "METRICS",
    "Estimate",
    "Moments",
    "Neighbours",
    "Sets",
    "frechet_difference",
    "frechet_distance",
    "inception_score",
    "kid",
    "measure",
    "neighbours",
    "p_value",
    "sliced_wasserstein",
    "squared_mmd",
    "standard_error",
    "two_sample_accuracy",
    "unbiased_frechet_distance",
]
