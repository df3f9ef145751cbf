"""Solvers tuned to one model and one NFE."""

from sde_diffusion.storage.tuned_solver import Tuned
from sde_diffusion.tuning.tuner import tune, tuned_each, tuned_for

__all__ = [
    "Tuned",
    "tune",
    "tuned_each",
    "tuned_for",
]
