"""Solvers from the diffusion literature that are neither exponential nor fitted."""

from solvers.diffusion.ancestral import DDIM, DDPM
from solvers.diffusion.annealed_langevin import AnnealedLangevin
from solvers.diffusion.edm import EDMHeun
from solvers.diffusion.er_sde import ERSDE
from solvers.diffusion.ipndm import IPNDM
from solvers.diffusion.predictor_corrector import PredictorCorrector
from solvers.diffusion.resampling import Resampling
from solvers.diffusion.restart import Restart
from solvers.diffusion.reverse_diffusion import ReverseDiffusion

__all__ = [
    "DDIM",
    "DDPM",
    "ERSDE",
    "IPNDM",
    "AnnealedLangevin",
    "EDMHeun",
    "PredictorCorrector",
    "Resampling",
    "Restart",
    "ReverseDiffusion",
]
