r"""A deep convolutional GAN (Radford, Metz & Chintala 2016) with the losses of Goodfellow et al. 2014.

    D minimises  E softplus(-D(x)) + E softplus(D(G(z))),        G minimises  E softplus(-D(G(z))).

One evaluation draws a sample; there is no likelihood, no map from x to z, and no loss whose fall shows progress.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from benchmarks.baselines.fitting import Fitted, fit
from sde_diffusion.data import Data

STEPS = 1500


class Generator(nn.Module):
    """z (B, k) -> images of 28 x 28."""

    def __init__(self, latent: int = 64, channels: int = 32) -> None:
        super().__init__()
        self.latent = latent
        self.layers = nn.Sequential(
            nn.Linear(latent, 2 * channels * 49, bias=False),
            nn.Unflatten(1, (2 * channels, 7, 7)),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """The images (B, 1, 28, 28)."""
        out: Tensor = self.layers(z)
        return out

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """G(z) of draws of z."""
        out: Tensor = self(torch.randn(n, self.latent))
        return out


def discriminator(channels: int = 32) -> nn.Sequential:
    """Images of 28 x 28 -> logits (B, 1)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * 49, 1),
    )


def adversarial(judge: nn.Module) -> Any:
    """The sum of both losses, of which each network receives the gradient of its own."""

    def loss(network: Generator, x: Tensor) -> Tensor:
        made = network(torch.randn(len(x), network.latent, device=x.device))
        fixed = {name: value.detach() for name, value in judge.named_parameters()}
        generator = softplus(-functional_call(judge, fixed, (made,)))
        told_apart = softplus(-judge(x)) + softplus(judge(made.detach()))
        return (generator + told_apart)[:, 0]

    return loss


def trained(data: Data, seed: int = 0, steps: int = STEPS) -> Fitted:
    """A GAN of images."""
    torch.manual_seed(seed)
    judge = discriminator()
    options: dict[str, Any] = {
        "steps": steps, "batch_size": 64, "learning_rate": 5e-4, "seed": seed, "clip": 1e9, "ema": 0.995,
    }  # fmt: skip
    return fit(Generator(), data, adversarial(judge), beside=judge, betas=(0.5, 0.999), **options)
