"""Score-based diffusion models whose solver can be chosen, trusted and tuned.

    x_t = alpha(t) x_0 + sigma(t) eps,      dx = f(t) x dt + g(t) dw,      t = 0 data, t = 1 noise

A forward process (``sde``), a network read as its score (``score``), and the reverse-time SDE and
probability-flow ODE that ``solvers`` integrate.
"""

from sde_diffusion.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.checkpoint import load
from sde_diffusion.metrics import frechet_distance
from sde_diffusion.sample import sample
from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.train import train

__all__ = [
    "EDM",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "EmpiricalData",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "ScoreModel",
    "SubVPSDE",
    "frechet_distance",
    "load",
    "sample",
    "train",
]
