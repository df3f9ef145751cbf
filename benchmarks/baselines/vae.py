r"""A variational autoencoder with a Gaussian decoder (Kingma & Welling 2014).

    z ~ N(0, I),   x | z ~ N(mu(z), diag(s^2)),   q(z | x) = N(m(x), diag(v(x))),

trained on ELBO = E_q [log p(x | z)] - KL(q(z | x) || N(0, I)). The deviations s, one for each value, are learned: a
fixed s would only scale the one term against the other. They span three orders of magnitude, so log s is 10 times its
parameter, which moves it 10 times as fast under Adam. With K draws of q the bound is tighter (Burda et al. 2016),

    log p(x) >= E log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.fitting import Fitted, dequantised, fit
from sde_diffusion.data import Data

LOG_2PI = math.log(2 * math.pi)
STEPS = 4000
FAST = 10.0


def log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of independent normal values, summed over the last axis."""
    return -(((x - mean) * torch.exp(-log_std)).square() / 2 + log_std + LOG_2PI / 2).sum(-1)


class VAE(nn.Module):
    """A VAE of vectors or of what is flattened to them.

    Args:
        encoder: x flattened (B, d) -> m and log v (B, 2 k).
        decoder: z (B, k) -> mu (B, d).
        shape: of one sample.
        latent: k.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, shape: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.shape, self.latent = encoder, decoder, shape, latent
        self.deviations = nn.Parameter(torch.zeros(math.prod(shape)))

    @property
    def log_std(self) -> Tensor:
        """log s, (d,)."""
        return FAST * self.deviations

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of q(z | x), both (B, k)."""
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_variance / 2

    def log_weights(self, x: Tensor, draws: int) -> Tensor:
        """log p(x | z) + log p(z) - log q(z | x) for draws of q, (draws, B)."""
        mean, log_std = self.posterior(x)
        z = mean + torch.exp(log_std) * torch.randn(draws, *mean.shape, dtype=x.dtype, device=x.device)
        seen = log_normal(x.flatten(1), self.decoder(z), self.log_std)
        zero = torch.zeros_like(mean)
        return seen + log_normal(z, zero, zero) - log_normal(z, mean, log_std)

    def elbo(self, x: Tensor) -> Tensor:
        """The bound with the KL divergence in closed form, in nats (B,)."""
        mean, log_std = self.posterior(x)
        z = mean + torch.exp(log_std) * torch.randn_like(mean)
        kl = (mean.square() + torch.exp(2 * log_std) - 1).sum(1) / 2 - log_std.sum(1)
        return log_normal(x.flatten(1), self.decoder(z), self.log_std) - kl

    @torch.no_grad()
    def nats(self, x: Tensor, draws: int = 64) -> Tensor:
        """The bound of importance sampling, (B,) float64."""
        parts = [self.log_weights(part, draws).double().logsumexp(0) for part in x.split(64)]
        return torch.cat(parts) - math.log(draws)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """The means mu(z) of draws of z, as is usual for images; noise of deviation s belongs to the law."""
        z = torch.randn(n, self.latent)
        out: Tensor = self.decoder(z).reshape(n, *self.shape)
        return out

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Mu of the mean of q(z | x)."""
        out: Tensor = self.decoder(self.posterior(x)[0]).reshape(x.shape)
        return out


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def untrained(shape: tuple[int, ...], latent: int = 16, width: int = 400) -> VAE:
    """A VAE with perceptrons."""
    size = math.prod(shape)
    encoder, decoder = perceptron(size, width, width, 2 * latent), perceptron(latent, width, width, size)
    return VAE(encoder, decoder, shape, latent)


def trained(data: Data, seed: int = 0, steps: int = STEPS) -> Fitted:
    """A VAE of images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": 128, "learning_rate": 1e-3, "seed": seed, "clip": 1e4}
    return fit(untrained(data.shape), data, lambda net, x: -net.elbo(dequantised(x)), **options)
