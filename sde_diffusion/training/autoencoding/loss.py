r"""The loss of an autoencoder, in the place of denoising score matching.

With d values in a sample x and D(z) its reconstruction,

    kl    ( ||x - D(z)||^2 + kl_weight KL(q(z | x) || N(0, 1)) ) / d,        z drawn from q(z | x)
    vq    ||x - D(z_q)||^2 / d + commitment ||z - z_q||^2 / (values of z),   z_q without gradient

(Kingma & Welling 2014, eq. 10; van den Oord et al. 2017, eq. 3, whose second term the codebook of averages replaces).
kl is the negative evidence lower bound times 2 s^2 / d, but for constants, of a normal decoder of standard deviation s
with kl_weight = 2 s^2: 1e-3 stands for s = 0.022, 3 of the 255 steps of a byte.

A perceptual distance in features of a classifier (``perceptual``) and the terms of a discriminator of patches
(``adversarial``) are added on request.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks.autoencoder import Autoencoder, Coded
from sde_diffusion.training.autoencoding.adversarial import AdversarialTerm
from sde_diffusion.training.autoencoding.perceptual import check_features, perceptual_distance
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.losses import Objective
from solvers.errors import InputError


class AutoencoderLoss(Objective):
    """The loss of the module.

    Args:
        model: the autoencoder.
        network: module that replaces its network, with the same parameters.
        config: ``kl_weight``, ``commitment``, ``perceptual``, ``adversarial`` and ``adversarial_after``.
        reader: the classifier of the perceptual distance, in evaluation mode; None for none.

    Raises:
        ValueError: a network without a loss, such as principal components; a classifier of other samples.
    """

    def __init__(
        self, model: ScoreModel, network: nn.Module, config: TrainConfig, reader: NoisyClassifier | None = None
    ) -> None:
        super().__init__(model, network)
        if not isinstance(model.network, Autoencoder):
            raise InputError(
                f"a {type(model.network).__name__} is not trained by gradients; train an Autoencoder of kind kl or vq"
            )
        self.bare = [model.network]  # in a list, so that its parameters are not registered a second time
        self.reader = [] if reader is None else [copy.deepcopy(reader).eval().requires_grad_(False)]  # likewise
        self.config = config
        self.step = 0
        if reader is not None:
            check_features(reader, model.shape)
        if config.adversarial:
            self.learned = AdversarialTerm(model.network.shape)
            self.betas = AdversarialTerm.betas
        self._last: dict[str, Tensor] = {}

    def begin(self, step: int) -> None:
        """Take the number of the update, from which the discriminator counts."""
        self.step = step

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The losses (B,) of samples x0, twice; times, noise and weights are not used."""
        coded: Coded = self.model.network(x0)
        made, x0 = coded.x.float(), x0.float()
        squared = (made - x0).square().flatten(1).mean(1)
        self._last = {"reconstruction": squared.detach()}
        if coded.log_variance is not None:
            nats = gaussian_kl(coded.z.float(), coded.log_variance.float())
            losses = squared + self.config.kl_weight * nats / x0[0].numel()
            self._last["kl_nats"] = nats.detach()
        else:
            assert coded.quantized is not None
            apart = (coded.z.float() - coded.quantized.float()).square().flatten(1).mean(1)
            losses = squared + self.config.commitment * apart
            self._last["commitment"] = apart.detach()
        shown = squared
        for reader in self.reader:
            distance = perceptual_distance(reader, made, x0, self.model.units)
            self._last["perceptual"] = distance.detach()
            losses, shown = (part + self.config.perceptual * distance for part in (losses, shown))
        logged = losses.detach()
        if isinstance(self.learned, AdversarialTerm):
            weight = self.config.adversarial if self.step > self.config.adversarial_after else 0.0
            term, figures = self.learned(x0, made, shown, self.bare[0].last_weight, weight)
            losses, self._last = losses + term, {**self._last, **figures}
        return logged, losses

    def figures(self) -> dict[str, float]:
        """The terms of the last batch, and the perplexity of the codes that training has used."""
        found = {name: float(value.mean()) for name, value in self._last.items()}
        quantizer = self.bare[0].quantizer
        if quantizer is not None:
            found["perplexity"] = quantizer.perplexity()
        return found


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each row, in nats.

    >>> import torch
    >>> gaussian_kl(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return terms.flatten(1).sum(1) / 2
