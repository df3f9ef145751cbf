r"""A classifier of noisy samples: (x, t) -> logits of the classes.

Samples with a grid (C, ...) go through residual blocks of falling resolution, those of the way down of a U-Net. All of
the last grid gives the logits, since under strong noise the place of a feature says more than the feature; its mean
does where the grid is large. Vectors go through the residual blocks of a perceptron. Both receive the embedded time in
every block. The last layer starts at zero, so that a new classifier gives all classes one probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks import mlp, unet
from sde_diffusion.networks.embeddings import Condition, check_call
from solvers.errors import InputError

LEVELS = 3  # at most
POSITIONS = 64  # of the last grid, up to which all of them are read


class Classifier(nn.Module):
    """A classifier of noisy samples.

    Args:
        shape: shape of one sample.
        classes: number of classes.
        channels: channels of the first level, doubled on the others; the width for vectors is four times that.
        blocks: residual blocks on each level.
        dropout: probability of dropping a feature while training.
        embedding: "log", "sinusoidal" or "fourier" time features.

    Raises:
        ValueError: a size below 1, an unknown embedding.

    >>> import torch
    >>> network = Classifier((1, 8, 8), classes=10)
    >>> network(torch.randn(2, 1, 8, 8), torch.rand(2)).shape
    torch.Size([2, 10])
    """

    name: ClassVar[str] = "classifier"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: int = 16,
        blocks: int = 1,
        dropout: float = 0.1,
        embedding: str = "log",
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        self.settings: dict[str, Any] = {
            "shape": list(self.shape),
            "classes": classes,
            "channels": channels,
            "blocks": blocks,
            "dropout": dropout,
            "embedding": embedding,
        }
        axes = len(self.shape) - 1
        if not self.shape or min((*self.shape, classes, channels, blocks)) < 1 or axes > 3:
            raise InputError(
                f"a classifier works on (D,), (C, L), (C, H, W) or (C, D, H, W) and has sizes from 1 up; got shape "
                f"{self.shape}, classes {classes}, channels {channels}, blocks {blocks}"
            )
        width = 4 * channels
        self.condition = Condition(2 * channels, width, embedding)
        if axes == 0:
            self.enter: nn.Module = nn.Linear(self.shape[0], width)
            self.levels = nn.ModuleList([nn.ModuleList(mlp.Block(width, dropout) for _ in range(2 * blocks))])
            self.shrink = nn.ModuleList()
            self.norm: nn.Module = nn.LayerNorm(width)
            self.pooled = False
            self.leave = mlp.zero(nn.Linear(width, classes))
            return
        conv = unet.CONVOLUTIONS[axes]
        count = next(k for k in range(LEVELS, 0, -1) if k == 1 or min(self.shape[1:]) >= 2**k)
        widths = [channels, *[2 * channels] * (count - 1)]
        self.enter = conv(self.shape[0], channels, 3, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(unet.Block(w, w, width, dropout, axes) for _ in range(blocks)) for w in widths
        )
        self.shrink = nn.ModuleList(conv(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.norm = unet.group_norm(widths[-1])
        positions = math.prod(-(-size // 2 ** (count - 1)) for size in self.shape[1:])
        self.pooled = positions > POSITIONS
        self.leave = mlp.zero(nn.Linear(widths[-1] * (1 if self.pooled else positions), classes))

    def levels_of(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the features of each level, (B, channels, ...), of x (B, *shape) at times t (B,).

        Raises:
            ValueError: shapes that do not fit.
        """
        check_call(x, t, self.shape)
        condition = F.silu(self.condition(t))
        h, found = self.enter(x), []
        for k, level in enumerate(self.levels):
            if k > 0:
                h = self.shrink[k - 1](h)
            for block in level.children():
                h = block(h, condition)
            found.append(h)
        return found

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits (B, classes) of x (B, *shape) at times t (B,).

        Raises:
            ValueError: shapes that do not fit.
        """
        h = F.silu(self.norm(self.levels_of(x, t)[-1]))
        out: Tensor = self.leave(h.flatten(2).mean(2) if self.pooled else h.flatten(1))
        return out
