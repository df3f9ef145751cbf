"""The cross-entropy of a classifier on noisy samples, in the place of denoising score matching."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.autoencoding.loss import AutoencoderLoss
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.losses import LossModule, Objective


class ClassifierLoss(Objective):
    """-log p(y | x_t, t) at x_t = alpha x_0 + sigma eps.

    Args:
        model: the classifier.
        network: module that replaces its network, with the same parameters.
    """

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The losses, and the losses multiplied by ``factor``, both (B,) float32; the classes are the label."""
        x = self.model.sde.perturb(x0, t, eps)
        assert isinstance(self.model, NoisyClassifier)
        labels = (condition or {})["label"]
        losses = F.cross_entropy(self.model.logits(x, t).float(), labels, reduction="none")
        return losses.detach(), losses * factor.float()


def objective_of(model: ScoreModel, network: nn.Module, config: TrainConfig) -> Objective:
    """The loss of a score model, a classifier or an autoencoder."""
    if isinstance(model, AutoencoderModel):
        return AutoencoderLoss(model, network, config, model.reader)
    if isinstance(model, NoisyClassifier):
        return ClassifierLoss(model, network)
    return LossModule(model, network, config.weight)
