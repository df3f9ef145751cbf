"""Training by weighted denoising score matching."""

from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.trainer import Trainer, TrainingStep
from sde_diffusion.training.training_run import train

__all__ = [
    "TrainConfig",
    "Trainer",
    "TrainingStep",
    "train",
]
