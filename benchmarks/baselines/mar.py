r"""Masked autoregression with a diffusion loss for each token (Li, Tian, Li, Deng & He 2024).

An image is 4 x 4 tokens of 7 x 7 values. A transformer sees the known tokens and gives each unknown one a vector h; a
small network denoises the token given h, so that p(token | known tokens) is a diffusion model without codes,

    loss = E | eps - eps_theta(alpha_t x + sigma_t eps, t, h) |^2        over the unknown tokens x.

A sample starts from no known tokens; in each of a few rounds the tokens of a random part of the unknown places are
drawn, all at once, by a solver of the toolkit. The number still unknown falls as a cosine (Chang et al. 2022).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.fitting import Fitted, fit
from sde_diffusion import VPSDE, ScoreModel
from sde_diffusion.data import Data
from sde_diffusion.networks import build
from sde_diffusion.training.losses import denoising_loss
from solvers import solve

STEPS = 2000
ROUNDS, NFE = 8, 8


def unknown_after(rounds: int, tokens: int) -> list[int]:
    """The number of tokens still unknown after each round.

    >>> unknown_after(4, 49)
    [45, 34, 18, 0]
    """
    return [int(tokens * math.cos(math.pi / 2 * k / rounds)) for k in range(1, rounds)] + [0]


class MAR(nn.Module):
    """A masked autoregressive model of images, or of anything that is cut into tokens.

    Args:
        side: height and width of an image.
        patch: those of a token.
        width: of the hidden vectors.
        depth: number of layers.
    """

    def __init__(self, side: int = 28, patch: int = 7, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.side, self.patch, self.length, self.token = side, patch, (side // patch) ** 2, patch**2
        self.enter = nn.Linear(self.token, width)
        self.unknown = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(0.02 * torch.randn(self.length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        head = build("mlp", shape=(self.token,), width=128, depth=3, embedding="log", context=width)
        self.head = ScoreModel(head, VPSDE(), "velocity", shape=(self.token,))

    def cut(self, x: Tensor) -> Tensor:
        """The tokens (B, length, token) of images (B, 1, side, side)."""
        return nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def joined(self, tokens: Tensor) -> Tensor:
        """The images of tokens."""
        size = (self.side, self.side)
        return nn.functional.fold(tokens.transpose(1, 2), size, self.patch, stride=self.patch)

    def hidden(self, tokens: Tensor, known: Tensor) -> Tensor:
        """The vectors h (B, length, width); tokens at places that are not known do not enter."""
        h = torch.where(known[..., None], self.enter(tokens), self.unknown) + self.places
        out: Tensor = self.layers(h)
        return out

    def loss(self, x: Tensor) -> Tensor:
        """The mean loss of the unknown tokens of each image, (B,)."""
        tokens, batch = self.cut(x), len(x)
        order = torch.rand(batch, self.length, device=x.device).argsort(1)
        left = (self.length * torch.cos(math.pi / 2 * torch.rand(batch, device=x.device))).ceil().clamp_min(1)
        unknown = order < left[:, None]
        h = self.hidden(tokens, ~unknown)[unknown]
        target = tokens[unknown]
        t = self.head.sde.to_step(torch.rand(len(target), dtype=torch.float64, device=x.device).clamp_min(1e-4))
        losses = denoising_loss(self.head, target, t, torch.randn_like(target), "velocity", context=h)
        row = unknown.nonzero()[:, 0]
        return torch.zeros(batch, device=x.device).index_add(0, row, losses) / left

    @torch.no_grad()
    def sample(self, n: int, rounds: int = ROUNDS, nfe: int = NFE) -> Tensor:
        """Images in ``rounds`` evaluations of the transformer, with ``nfe`` of the head for each token."""
        tokens = torch.zeros(n, self.length, self.token)
        order = torch.rand(n, self.length).argsort(1).argsort(1)
        before = self.length
        for after in unknown_after(rounds, self.length):
            known, now = order >= before, (order >= after) & (order < before)
            if bool(now.any()):
                h = self.hidden(tokens, known)[now]
                process = self.head.sde.probability_flow(self.head, context=h)
                noise = torch.randn(len(h), self.token) * self.head.sde.prior_std()
                tokens[now] = solve(process, noise, solver="pf-ode", nfe=nfe).x
            before = after
        return self.joined(tokens).clamp(-1, 1)


def trained(data: Data, seed: int = 0, steps: int = STEPS) -> Fitted:
    """A model of images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": 64, "learning_rate": 1e-3, "seed": seed, "ema": 0.998}
    return fit(MAR(), data, lambda net, x: net.loss(x), **options)
