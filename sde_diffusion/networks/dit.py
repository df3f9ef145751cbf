r"""A transformer on patches of an image, a signal or a volume (DiT: Peebles & Xie 2023).

The sample is cut into patches, each a token. Positions are encoded by fixed sinusoids along each axis. A block is

    h <- h + a1 attention( (1 + s1) norm(h) + b1 ),      h <- h + a2 mlp( (1 + s2) norm(h) + b2 ),

with all six vectors a linear function of the embedded time and class that starts at zero (adaLN-Zero, section
3.2): a new block is the identity and a new network returns exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks.embeddings import Condition, geometric_frequencies
from sde_diffusion.networks.given import CrossAttention, GivenConditions, chosen_settings, read_conditions
from sde_diffusion.networks.mlp import zero
from solvers.errors import InputError


def positions(sizes: Sequence[int], width: int) -> Tensor:
    """Fixed sinusoids of every position of a grid, (positions, width), with as many features for each axis.

    >>> positions((4, 2), 16).shape
    torch.Size([8, 16])
    """
    share = width // (2 * len(sizes))
    axes = [torch.arange(size, dtype=torch.float32) / size for size in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    angle = grid[:, :, None] * geometric_frequencies(share)
    encoding = torch.cat([angle.cos(), angle.sin()], dim=2).flatten(1)
    return F.pad(encoding, (0, width - encoding.shape[1]))


class Block(nn.Module):
    """One transformer block, (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int, dropout: float, tokens: int | None = None) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.first = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4 * width, width)
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.cross = None if tokens is None else CrossAttention(width, tokens, heads)

    def forward(self, h: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the block's output for h (B, N, width), condition (B, width) and tokens to read (B, n, features)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        batch, count, width = h.shape
        inner = self.qkv(self.norm1(h) * (1 + scale1) + shift1)
        q, k, v = inner.reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + gate1 * self.merge(read)
        if self.cross is not None and tokens is not None:
            h = h + self.cross(h, tokens)
        inner = F.gelu(self.first(self.norm2(h) * (1 + scale2) + shift2), approximate="tanh")
        out: Tensor = h + gate2 * self.last(self.dropout(inner))
        return out


class Transformer(nn.Module):
    """The layers of a transformer on tokens of any origin: blocks between two linear layers, the last one at zero."""

    def add_layers(
        self, enters: int, leaves: int, width: int, depth: int, heads: int, dropout: float, reads: int | None = None
    ) -> None:
        """Build the layers.

        Args:
            enters: values of a token.
            leaves: values of a token of the output.
            width: length of a token inside.
            depth: number of blocks.
            heads: attention heads.
            dropout: probability of dropping a hidden value while training.
            reads: width of the tokens that the blocks read, or None.
        """
        self.enter = nn.Linear(enters, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, reads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.leave = zero(nn.Linear(width, leaves))

    def through(self, h: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the output (B, N, leaves) of tokens h (B, N, width) inside, under a condition (B, width)."""
        for block in self.blocks:
            h = block(h, condition, tokens)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=2)
        out: Tensor = self.leave(self.norm(h) * (1 + scale) + shift)
        return out


class DiT(Transformer):
    """A diffusion transformer, for samples (C, L), (C, H, W) or with more axes.

    Args:
        shape: shape of one sample; every size but the first is divisible by `patch`.
        patch: side of a patch.
        width: length of a token, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads.
        dropout: probability of dropping a hidden value while training.
        embedding: "log", "sinusoidal" or "fourier" time features.
        classes: number of classes for labels, or None.
        context: length of an augmentation label or another vector, or None.
        variance: whether to return twice the channels, for a learned variance.
        vector: length of a condition vector, or None.
        image: shape of a condition image, or None; it is concatenated to x.
        resize: "nearest", "bilinear" or "area", for a condition image of another size than the sample.
        tokens: width of the tokens that attention layers read, or None.
        caption: the words of captions, which attention layers read by a text encoder trained here; None for none.
        caption_width: width of the text encoder, 64 by default.
        code: length of the code of the condition image, in whose place the network receives it; None for the image.
        required: whether a call without these conditions is refused.

    Raises:
        ValueError: sizes that do not fit one another, an unknown embedding.

    >>> network = DiT((1, 8, 8), width=32, depth=2, heads=2)
    >>> x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    >>> network(x, t).abs().max().item()                                    # starts at exactly 0
    0.0
    """

    name: ClassVar[str] = "dit"
    places: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        classes: int | None = None,
        context: int | None = None,
        variance: bool = False,
        vector: int | None = None,
        image: Sequence[int] | None = None,
        resize: str | None = None,
        tokens: int | None = None,
        caption: Sequence[str] | None = None,
        caption_width: int | None = None,
        code: int | None = None,
        required: bool = False,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        beside = chosen_settings(
            vector=vector, image=image, resize=resize, tokens=tokens, caption=caption, caption_width=caption_width,
            code=code, required=required,
        )  # fmt: skip
        self.settings: dict[str, Any] = {
            "shape": list(self.shape),
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "embedding": embedding,
            "classes": classes,
            "context": context,
            "variance": variance,
            **beside,
        }
        channels, *sizes = self.shape if len(self.shape) > 1 else (0,)
        if channels < 1 or min(sizes) < 1 or min(patch, width, depth, heads) < 1:
            raise InputError(
                f"a DiT works on samples (C, L), (C, H, W), ... with all its sizes from 1 up; got shape {self.shape}, "
                f"patch {patch}, width {width}, depth {depth}, heads {heads}"
            )
        if any(size % patch for size in sizes):
            raise InputError(f"patches of side {patch} do not divide a sample of {' x '.join(map(str, sizes))}")
        if width % heads or width < 2 * len(sizes):
            raise InputError(f"a width of {width} cannot be shared by {heads} heads and {len(sizes)} axes")
        self.patch = patch
        self.leaves = channels * (2 if variance else 1)
        self.cells = [size // patch for size in sizes]
        self.condition = Condition(width, width, embedding, classes, context)
        self.given = GivenConditions(self.shape, width, **beside) if beside else None
        self.enters = channels + (self.given.channels if self.given else 0)
        area, reads = patch ** len(sizes), self.given.token_width if self.given else None
        self.add_layers(self.enters * area, self.leaves * area, width, depth, heads, dropout, reads)
        self.register_buffer("places", positions(self.cells, width), persistent=False)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        image_noise: Tensor | None = None,
        tokens: Tensor | None = None,
        caption: Tensor | None = None,
        code: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output; shapes, conditions and errors are those of ``UNet.forward``."""
        condition, x, tokens = read_conditions(
            self, x, t, label, context, vector=vector, image=image, image_noise=image_noise, tokens=tokens,
            caption=caption, code=code,
        )  # fmt: skip
        return self.assemble(self.through(self.enter(self.tokens(x)) + self.places, condition, tokens))

    def tokens(self, x: Tensor) -> Tensor:
        """Cut a sample into patches: (B, C, *sizes) -> (B, N, C patch^axes)."""
        split = [size for cells in self.cells for size in (cells, self.patch)]
        axes = len(self.cells)
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        h = x.reshape(len(x), self.enters, *split).permute(order)
        return h.reshape(len(x), math.prod(self.cells), -1)

    def assemble(self, h: Tensor) -> Tensor:
        """Put patches together, the inverse of ``tokens``, for the channels of the output."""
        axes = len(self.cells)
        h = h.reshape(len(h), *self.cells, self.leaves, *[self.patch] * axes)
        order = [0, 1 + axes, *(place for k in range(axes) for place in (1 + k, 2 + axes + k))]
        return h.permute(order).reshape(len(h), self.leaves, *self.shape[1:])
