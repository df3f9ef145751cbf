r"""A U-Net for images, signals and volumes (Ronneberger et al. 2015; Ho et al. 2020, appendix B).

The sample goes down through levels of falling resolution and rising channel count and up again; the
way up receives, besides its own input, the features of the way down at the same place. Every level has `blocks`
residual blocks on the way down and as many on the way up; on the deepest level the two meet.

    block(h, c) = skip(h) + conv( drop( silu( (1 + a) norm( conv( silu(norm(h)) ) ) + b ) ) ),

with (a, b) a linear function of the embedded time and class (adaptive group norm: Dhariwal and
Nichol 2021, section 3). On the levels listed in `attention` every block is followed by
self-attention between all positions. The last layer of each block, of each attention and of the
network starts at zero, so a new network returns exactly 0 and its blocks start as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks.embeddings import Condition
from sde_diffusion.networks.given import CrossAttention, GivenConditions, chosen_settings, read_conditions
from sde_diffusion.networks.mlp import zero
from solvers.errors import InputError


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups of at least 4 channels, as far as the number divides.

    >>> group_norm(128).num_groups, group_norm(48).num_groups, group_norm(7).num_groups
    (32, 12, 1)
    """
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Block(nn.Module):
    """A residual block with adaptive group norm, (B, enter, ...) -> (B, leave, ...)."""

    def __init__(self, enter: int, leave: int, width: int, dropout: float, axes: int = 2) -> None:
        """Build the layers."""
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.norm1 = group_norm(enter)
        self.conv1 = conv(enter, leave, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * leave)
        self.norm2 = group_norm(leave)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(conv(leave, leave, 3, padding=1))
        self.skip = nn.Identity() if enter == leave else conv(enter, leave, 1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return the block's output for features h and condition (B, width)."""
        steer = self.modulation(condition)
        scale, shift = steer.reshape(*steer.shape, *(1,) * (h.ndim - 2)).chunk(2, dim=1)
        inner = self.conv1(F.silu(self.norm1(h)))
        inner = F.silu(self.norm2(inner) * (1 + scale) + shift)
        out: Tensor = self.skip(h) + self.conv2(self.dropout(inner))
        return out


class Attention(nn.Module):
    """Residual self-attention between all positions, (B, C, ...) -> (B, C, ...).

    It is equivariant to permutations of the positions.
    """

    def __init__(self, channels: int, heads: int, axes: int = 2) -> None:
        """Build the layers."""
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"{channels} channels cannot be shared by {heads} attention heads")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = CONVOLUTIONS[axes](channels, 3 * channels, 1)
        self.leave = zero(CONVOLUTIONS[axes](channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Return h plus what its positions read from one another."""
        batch, channels, *sizes = h.shape
        split = (batch, 3, self.heads, channels // self.heads, math.prod(sizes))
        q, k, v = self.qkv(self.norm(h)).reshape(split).transpose(3, 4).unbind(1)
        read = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = h + self.leave(read.transpose(2, 3).reshape(h.shape))
        return out


class ResidualStage(nn.Module):
    """A residual block, followed by attention where the level has it: to itself, and to tokens if there are any."""

    def __init__(self, block: Block, attention: Attention | None, cross: CrossAttention | None = None) -> None:
        """Build the layers."""
        super().__init__()
        self.block = block
        self.attention = attention
        self.cross = cross

    def forward(self, h: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the stage's output for features h, condition (B, width) and tokens (B, n, features)."""
        h = self.block(h, condition)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None and tokens is not None:
            read = self.cross(h.flatten(2).transpose(1, 2), tokens)
            h = h + read.transpose(1, 2).reshape(h.shape)
        return h


class UNet(nn.Module):
    """A U-Net for images (C, H, W), signals (C, L) or volumes (C, D, H, W) of one size.

    Args:
        shape: shape of one sample. Sizes that 2^(levels - 1) does not divide are padded to the next multiple, by
            repeating the last value, and the output is cropped.
        channels: feature channels of the first level.
        multipliers: channels of each level, in units of `channels`; their number is that of the
            levels.
        blocks: residual blocks per level and direction.
        attention: the heights (H, H/2, H/4, ..., or lengths, of the padded sample) of the levels that have
            self-attention.
        heads: attention heads; the channels of those levels are divisible by it.
        dropout: probability of dropping a feature while training.
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

    >>> network = UNet((1, 8, 8), channels=16, multipliers=(1, 2), attention=(4,))
    >>> x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    >>> network(x, t).abs().max().item()                                    # starts at exactly 0
    0.0
    >>> UNet((1, 9, 10), channels=16, multipliers=(1, 2, 2), attention=(3,))(torch.randn(2, 1, 9, 10), t).shape
    torch.Size([2, 1, 9, 10])
    """

    name: ClassVar[str] = "unet"

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        heads: int = 4,
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
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "dropout": dropout,
            "embedding": embedding,
            "classes": classes,
            "context": context,
            "variance": variance,
            **beside,
        }
        heights = check_sizes(self.shape, channels, multipliers, blocks, attention)
        if (tokens or caption) and not attention:
            raise InputError("tokens and captions are read by the levels with attention; give attention=, such as (8,)")
        self.padding = [-size % 2 ** (len(multipliers) - 1) for size in self.shape[1:]]
        widths = [channels * multiplier for multiplier in multipliers]
        vector_width, axes = 4 * channels, len(self.shape) - 1
        conv = CONVOLUTIONS[axes]

        def stage(enter: int, level: int) -> ResidualStage:
            leave = widths[level]
            attends = heights[level] in attention
            block = Block(enter, leave, vector_width, dropout, axes)
            sizes = [(size + more) // 2**level for size, more in zip(self.shape[1:], self.padding, strict=True)]
            cross = None if reads is None or not attends else CrossAttention(leave, reads, heads, sizes)
            return ResidualStage(block, Attention(leave, heads, axes) if attends else None, cross)

        bottom = len(widths) - 1
        self.condition = Condition(2 * channels, vector_width, embedding, classes, context)
        self.given = GivenConditions(self.shape, vector_width, **beside) if beside else None
        reads = self.given.token_width if self.given else None
        self.enter = conv(self.shape[0] + (self.given.channels if self.given else 0), widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.ModuleList(stage(widths[k], k) for _ in range(blocks)) for k in range(bottom))
        self.shrink = nn.ModuleList(conv(widths[k], widths[k + 1], 3, stride=2, padding=1) for k in range(bottom))
        self.middle = nn.ModuleList(stage(widths[bottom], bottom) for _ in range(2 * blocks))
        self.grow = nn.ModuleList(conv(widths[k + 1], widths[k], 3, padding=1) for k in range(bottom))
        self.up = nn.ModuleList(nn.ModuleList(stage(2 * widths[k], k) for _ in range(blocks)) for k in range(bottom))
        self.norm = group_norm(widths[0])
        self.leave = zero(conv(widths[0], self.shape[0] * (2 if variance else 1), 3, padding=1))

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
        """Return the network's output, shaped like x, or with twice its channels.

        Args:
            x: noisy samples, (B, *shape).
            t: one time per sample, (B,).
            label: (B,) int64; `classes` means no class. None means no class for the whole batch.
            context: (B, length); rows of NaN mean none. None means none for the whole batch.
            vector: (B, length); likewise.
            image: (B, *image); likewise.
            image_noise: (B,), the noise level of the condition image, 0 by default.
            tokens: (B, n, width); likewise, and single tokens of NaN are padding.
            caption: (B, n), numbers of words; likewise.
            code: (B, length), instead of the condition image; likewise.

        Raises:
            ValueError: shapes that do not fit, labels without classes or outside 0..classes.
        """
        condition, x, tokens = read_conditions(
            self, x, t, label, context, vector=vector, image=image, image_noise=image_noise, tokens=tokens,
            caption=caption, code=code,
        )  # fmt: skip
        if any(self.padding):
            x = F.pad(x, [n for size in reversed(self.padding) for n in (0, size)], mode="replicate")
        h = self.enter(x)
        seen = []
        for level, shrink in enumerate(self.shrink):
            for stage in self.down[level].children():
                h = stage(h, condition, tokens)
                seen.append(h)
            h = shrink(h)
        for stage in self.middle:
            h = stage(h, condition, tokens)
        for level in reversed(range(len(self.grow))):
            h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            for stage in self.up[level].children():
                h = stage(torch.cat([h, seen.pop()], dim=1), condition, tokens)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        for axis, size in enumerate(self.shape[1:]):
            out = out.narrow(axis + 2, 0, size) if self.padding[axis] else out
        return out


def check_sizes(
    shape: tuple[int, ...],
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
) -> list[int]:
    """Return the height of each level; the error names the sizes that do not fit.

    >>> check_sizes((1, 8, 8), 32, (1, 2), 2, (4,)), check_sizes((1, 7, 8), 32, (1, 2), 2, (4,))
    ([8, 4], [8, 4])
    """
    if len(shape) - 1 not in CONVOLUTIONS or min(shape) < 1:
        raise InputError(f"a U-Net works on (C, L), (C, H, W) or (C, D, H, W); got shape {shape}")
    if channels < 1 or blocks < 1 or not multipliers or min(multipliers) < 1:
        raise InputError(
            f"a U-Net needs channels, blocks and multipliers from 1 up; got channels {channels}, "
            f"blocks {blocks}, multipliers {tuple(multipliers)}"
        )
    halvings = len(multipliers) - 1
    if min(shape[1:]) <= 2 ** (halvings - 1) and halvings:
        raise InputError(
            f"{halvings + 1} levels halve the sample {halvings} times, more than its sizes bear; got "
            f"{' x '.join(map(str, shape[1:]))}: give fewer multipliers"
        )
    heights = [-(-shape[1] // 2**halvings) * 2 ** (halvings - level) for level in range(halvings + 1)]
    if unknown := sorted(set(attention) - set(heights)):
        raise InputError(f"attention at heights {unknown}, but the levels have heights {heights}")
    return heights
