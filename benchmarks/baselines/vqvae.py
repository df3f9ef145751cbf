r"""A vector-quantised autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017).

The encoder's vector at each of 7 x 7 places is replaced by the nearest of K code vectors, both of unit length (Yu et
al. 2022), which keeps codes in use. With sg for "no gradient", e the encoder's vector and c the code,

    loss = -log N(x; mu(c), diag(s^2)) + w ( |sg(e) - c|^2 + beta |e - sg(c)|^2 ),

and the decoder's gradient passes to the encoder as if c were e. With a law of the codes z the model has the bound

    log p(x) >= log p(x | z(x)) + log p(z(x)),

one term of the sum over all z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.baselines.fitting import Fitted, dequantised, fit
from benchmarks.baselines.vae import FAST, log_normal
from sde_diffusion.data import Data

STEPS = 700
PLACES = 49
COMMITMENT, WEIGHT = 0.25, 20.0


def perplexity(codes: Tensor, size: int) -> float:
    """exp of the entropy of the codes in use: their effective number, from 1 to ``size``.

    >>> round(perplexity(torch.tensor([0, 1, 2, 3]), 8), 6)
    4.0
    """
    share = codes.flatten().bincount(minlength=size).double() / codes.numel()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


class Quantiser(nn.Module):
    """The code vectors.

    Args:
        size: K.
        width: their length.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(size, width))

    def vectors(self) -> Tensor:
        """The code vectors (K, width), of unit length."""
        return normalize(self.codes, dim=1)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest codes of vectors (B, n, width): their vectors, their numbers (B, n), and the loss (B,)."""
        e, book = normalize(e, dim=-1), self.vectors()
        index = (e @ book.T).argmax(-1)
        c = book[index]
        loss = (e.detach() - c).square() + COMMITMENT * (e - c.detach()).square()
        return e + (c - e).detach(), index, loss.sum(-1).mean(1)


class VQVAE(nn.Module):
    """An autoencoder of images of 28 x 28 with 7 x 7 codes.

    Args:
        size: K.
        width: length of a code vector.
        channels: of the convolutions.
    """

    def __init__(self, size: int = 128, width: int = 8, channels: int = 32) -> None:
        super().__init__()
        self.size = size
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 4, 2, 1), nn.SiLU(), nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1), nn.SiLU(), nn.Conv2d(2 * channels, width, 1),
        )  # fmt: skip
        self.quantiser = Quantiser(size, width)
        self.decoder = nn.Sequential(
            nn.Conv2d(width, 2 * channels, 3, 1, 1), nn.SiLU(), nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1),
            nn.SiLU(), nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(channels, 1, 4, 2, 1),
        )  # fmt: skip
        self.deviations = nn.Parameter(torch.zeros(784))

    @property
    def log_std(self) -> Tensor:
        """log s, (784,)."""
        return FAST * self.deviations

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``Quantiser.forward`` returns for images."""
        out: tuple[Tensor, Tensor, Tensor] = self.quantiser(self.encoder(x).flatten(2).transpose(1, 2))
        return out

    def decode(self, vectors: Tensor) -> Tensor:
        """The means of images for code vectors (B, 49, width)."""
        out: Tensor = self.decoder(vectors.transpose(1, 2).unflatten(2, (7, 7)))
        return out

    def loss(self, x: Tensor) -> Tensor:
        """The loss (B,), in nats but for the weight of the codes."""
        vectors, _, loss = self.encode(x)
        return WEIGHT * loss - log_normal(x.flatten(1), self.decode(vectors).flatten(1), self.log_std)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The codes (B, 49) of images."""
        return torch.cat([self.encode(part)[1] for part in x.split(500)])

    @torch.no_grad()
    def images(self, codes: Tensor) -> Tensor:
        """The means of images for codes (B, 49)."""
        return torch.cat([self.decode(self.quantiser.vectors()[part]) for part in codes.split(500)])

    @torch.no_grad()
    def nats_given_codes(self, x: Tensor) -> Tensor:
        """log p(x | z(x)), (B,) float64."""
        mean = self.images(self.codes(x)).flatten(1).double()
        return log_normal(x.flatten(1).double(), mean, self.log_std.double())


def trained(data: Data, seed: int = 0, steps: int = STEPS) -> Fitted:
    """A VQ-VAE of images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": 64, "learning_rate": 1e-3, "seed": seed, "clip": 1e4}
    return fit(VQVAE(), data, lambda net, x: net.loss(dequantised(x)), **options)
