r"""A causal transformer of a sequence of symbols: log p(z) = sum_i log p(z_i | z_1, ..., z_{i-1}).

The likelihood is exact and takes one evaluation; a sample takes one for each symbol. With the codes of a VQ-VAE it is
the second stage of van den Oord et al. 2017, and the two together have a bound of log p(x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.baselines import vqvae
from benchmarks.baselines.fitting import Fitted, fit
from sde_diffusion.data import Data

STEPS = 700


class CausalTransformer(nn.Module):
    """A law of sequences.

    Args:
        size: number of symbols.
        length: of a sequence.
        width: of the hidden vectors.
        depth: number of layers.
        heads: of the attention.
    """

    def __init__(self, size: int, length: int, width: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.size, self.length = size, length
        self.symbols = nn.Embedding(size + 1, width)  # the last one stands before the first symbol
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, z: Tensor) -> Tensor:
        """Logits of the first n + 1 symbols given the first n of z (B, n), for n below ``length``."""
        start = z.new_full((len(z), 1), self.size)
        h = self.symbols(torch.cat([start, z], dim=1)) + self.places[: z.shape[1] + 1]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        out: Tensor = self.leave(self.layers(h, mask=mask, is_causal=True))
        return out

    def nats(self, z: Tensor) -> Tensor:
        """log p(z) of sequences (B, length) of int64, (B,)."""
        logits = self(z[:, :-1])
        return -cross_entropy(logits.transpose(1, 2), z, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Sequences (n, length), symbol by symbol."""
        z = torch.empty(n, 0, dtype=torch.int64)
        for _ in range(self.length):
            p = self(z)[:, -1].softmax(1)
            z = torch.cat([z, torch.multinomial(p, 1)], dim=1)
        return z


class TwoStages(nn.Module):
    """A VQ-VAE and the law of its codes.

    Args:
        images: the autoencoder.
        law: the transformer.
    """

    def __init__(self, images: vqvae.VQVAE, law: CausalTransformer) -> None:
        super().__init__()
        self.images, self.law = images, law

    @torch.no_grad()
    def nats(self, x: Tensor) -> Tensor:
        """The bound log p(x | z(x)) + log p(z(x)), (B,) float64."""
        parts = [self.images.nats_given_codes(p) + self.law.nats(self.images.codes(p)).double() for p in x.split(500)]
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """The means of images for draws of the codes."""
        return self.images.images(self.law.sample(n))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The means of images for the codes of x."""
        return self.images.images(self.images.codes(x))


def fit_law(law: CausalTransformer, codes: Tensor, **options: Any) -> Fitted:
    """Train the law of sequences (N, length); float32 data hold the symbols exactly."""
    return fit(law, codes.float(), lambda net, z: -net.nats(z.long()), **options)


def trained(data: Data, seed: int = 0, steps: int = STEPS, first: int = vqvae.STEPS) -> Fitted:
    """Both stages, one after the other."""
    made = vqvae.trained(data, seed, first)
    x = data.x.float() / 127.5 - 1
    codes = made.network.codes(x)
    torch.manual_seed(seed)
    law = CausalTransformer(made.network.size, codes.shape[1])
    found = fit_law(law, codes, steps=steps, batch_size=64, learning_rate=1e-3, seed=seed)
    both = TwoStages(made.network, found.network).eval()
    return Fitted(both, made.seconds + found.seconds, made.losses + found.losses)
