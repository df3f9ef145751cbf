"""Exact likelihoods by the probability-flow ODE, variational bounds, and bits per dimension."""

from sde_diffusion.likelihood.dequantization import bits_per_dim
from sde_diffusion.likelihood.energy import LogRatio, log_ratio
from sde_diffusion.likelihood.flow import log_likelihood

__all__ = [
    "LogRatio",
    "bits_per_dim",
    "log_likelihood",
    "log_ratio",
]
