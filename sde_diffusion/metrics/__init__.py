"""Distances between sets of samples, each with its standard error."""

from sde_diffusion.metrics.estimate import Estimate, standard_error
from sde_diffusion.metrics.frechet import frechet_distance
from sde_diffusion.metrics.inception_score import inception_score
from sde_diffusion.metrics.measure import METRICS, Sets, measure
from sde_diffusion.metrics.mmd import kid, squared_mmd
from sde_diffusion.metrics.moments import Moments
from sde_diffusion.metrics.neighbours import Neighbours, neighbours
from sde_diffusion.metrics.sliced_wasserstein import sliced_wasserstein
from sde_diffusion.metrics.two_sample import p_value, two_sample_accuracy

__all__ = [
    "METRICS",
    "Estimate",
    "Moments",
    "Neighbours",
    "Sets",
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
]
