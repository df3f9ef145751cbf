"""Score-based diffusion models whose solver can be chosen, trusted and tuned.

    x_t = alpha(t) x_0 + sigma(t) eps,      dx = f(t) x dt + g(t) dw,      t = 0 data, t = 1 noise

A forward process (``sde``), a network read as its score (``score``), and the reverse-time SDE and
probability-flow ODE that ``solvers`` integrate.
"""

from sde_diffusion.evaluation import evaluate
from sde_diffusion.evaluation.metrics import frechet_distance
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.likelihood.dequantization import bits_per_dim
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.training.training_run import train
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
    "FeatureStatistics",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Guided",
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
