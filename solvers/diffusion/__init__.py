"""Solvers from the diffusion literature that are neither exponential nor fitted."""

from solvers.diffusion.ancestral import DDIM, DDPM
from solvers.diffusion.edm import EDMHeun
from solvers.diffusion.er_sde import ERSDE
from solvers.diffusion.ipndm import IPNDM
from solvers.diffusion.predictor_corrector import PredictorCorrector
from solvers.diffusion.restart import Restart
from solvers.diffusion.reverse_diffusion import ReverseDiffusion

__all__ = [
    "DDIM",
    "DDPM",
    "ERSDE",
    "IPNDM",
    "EDMHeun",
    "PredictorCorrector",
    "Restart",
    "ReverseDiffusion",
]
