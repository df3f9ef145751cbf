"""Score-based diffusion models whose solver can be chosen, trusted and tuned.

    x_t = alpha(t) x_0 + sigma(t) eps,      dx = f(t) x dt + g(t) dw,      t = 0 data, t = 1 noise

A forward process (``sde``), a network read as its score (``score``), and the reverse-time SDE and
probability-flow ODE that ``solvers`` integrate.
"""

from sde_diffusion.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.bits import bits_per_dim
from sde_diffusion.checkpoint import load
from sde_diffusion.discrete import DiscreteModel
from sde_diffusion.evaluation import evaluate
from sde_diffusion.guidance import Guided
from sde_diffusion.latent import decode, encode
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.metrics import frechet_distance
from sde_diffusion.reference import Reference
from sde_diffusion.sample import sample
from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.train import train
from sde_diffusion.tuning import tune

__all__ = [
    "DDPM",
    "EDM",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "DiscreteModel",
    "EmpiricalData",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "Reference",
    "ScoreModel",
    "SubVPSDE",
    "bits_per_dim",
    "decode",
    "encode",
    "evaluate",
    "frechet_distance",
    "load",
    "log_likelihood",
    "sample",
    "train",
    "tune",
]
