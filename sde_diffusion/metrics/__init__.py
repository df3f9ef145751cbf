"""Distances between sets of samples."""

from sde_diffusion.metrics.frechet import frechet_distance
from sde_diffusion.metrics.moments import Moments

__all__ = ["Moments", "frechet_distance"]
