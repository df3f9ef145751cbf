r"""Augmentation with labels for the network: horizontal flips, and the geometric part of EDM's pipeline.

A vector of 9 numbers, the augmentation label, describes the transformation of a sample. The network receives it as
its context. The label of an unchanged sample is NaN, which means no context, so that sampling without a context
gives samples of the original data (Karras et al. 2022, appendix F.2):

    mirror x, mirror y    1 with probability p / 2 each
    scale                 z, the image grows by 2^(0.2 z)
    rotation              cos a - 1 and sin a,  a clockwise, uniform on [-pi, pi]
    anisotropy            z cos 2b and z sin 2b,  direction b grows by 2^(0.2 z), the one across shrinks, b uniform
    shift                 z_x and z_y,  by z / 8 of the width and height

z are standard normal; each line except flips applies with probability p. The numbers are drawn for a whole batch
from one generator, so that a process that holds a part of it takes its rows. Images are sampled bilinearly and
continued by reflection. Mirroring alone (``flip``) is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from solvers.errors import InputError

LABELS = 9


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of images, and their probabilities.

    Args:
        flip: horizontal flip with probability 1/2, not passed to the network.
        probability: p of every line of EDM's pipeline; 0.12 in the paper for CIFAR-10, 0 for none.

    Raises:
        ValueError: a probability outside [0, 1].

    >>> draw = Augmentation(probability=0.12).draw(64, torch.Generator().manual_seed(0))
    >>> draw.shape
    torch.Size([64, 10])
    """

    flip: bool = False
    probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"the probability of an augmentation is in [0, 1]; got {self.probability}")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """The transformation of each sample of a batch, (B, 10) float32: the flip, then the 9 numbers of the module.

        Args:
            batch: size of the whole batch, over all processes.
            generator: seeded for the step, on the CPU.
        """
        u = torch.rand(batch, 9, generator=generator)
        z = torch.randn(batch, 4, generator=generator)
        flip = (u[:, :1] < 0.5).float() * self.flip
        p = self.probability
        mirror = (u[:, 1:3] < p / 2).float()
        there = (u[:, 3:7] < p).float()
        angle, twice = (2 * u[:, 7] - 1) * math.pi, (2 * u[:, 8] - 1) * math.pi
        columns = [
            there[:, 0] * z[:, 0],
            there[:, 1] * (angle.cos() - 1),
            there[:, 1] * angle.sin(),
            there[:, 2] * z[:, 1] * twice.cos(),
            there[:, 2] * z[:, 1] * twice.sin(),
            there[:, 3] * z[:, 2],
            there[:, 3] * z[:, 3],
        ]
        return torch.cat([flip, mirror, torch.stack(columns, 1)], 1)

    def apply(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented images and their augmentation labels.

        Args:
            x: (B, C, H, W) in [-1, 1].
            drawn: the rows of ``draw`` for these samples, (B, 10).

        Returns:
            Images like x, and labels (B, 9) on the device of x, NaN for samples that EDM's pipeline left unchanged.

        Raises:
            ValueError: x are no images, or the rows are not theirs.

        >>> x = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> Augmentation(flip=True).apply(x, torch.eye(10)[:1])[0].flatten().tolist()
        [3.0, 2.0, 1.0, 0.0]
        """
        if x.ndim != 4 or drawn.shape != (len(x), LABELS + 1):
            raise InputError(
                f"expected images (B, C, H, W) and (B, {LABELS + 1}) drawn numbers; got {tuple(x.shape)} and "
                f"{tuple(drawn.shape)}"
            )
        drawn = drawn.to(x.device, x.dtype)
        labels = drawn[:, 1:]
        nothing = (labels == 0).all(1, keepdim=True)
        x = _where(drawn[:, 0], x.flip(3), x)
        x = _where(labels[:, 0], x.flip(3), x)
        x = _where(labels[:, 1], x.flip(2), x)
        moved = (labels[:, 2:] != 0).any(1)
        if bool(moved.any()):
            x = x.index_copy(0, moved.nonzero()[:, 0], _warp(x[moved], labels[moved]))
        return x, labels.masked_fill(nothing, math.nan)


def _where(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(which[:, None, None, None] != 0, a, b)


def _warp(x: Tensor, labels: Tensor) -> Tensor:
    """Scale, turn, stretch and shift: the output at a place is the input where the inverse map takes that place."""
    _, _, scale, cosine, sine, along, across, right, down = labels.unbind(1)
    c, s = cosine + 1, sine
    grow = torch.exp2(-0.2 * scale)
    # exp of the symmetric matrix -0.2 ln 2 [[a, b], [b, -a]], with (a, b) of length |z| at twice the direction's angle.
    size = torch.hypot(along, across)
    gain = 0.2 * math.log(2) * size
    unit = torch.where(size > 0, size, 1.0)
    a, b = along / unit * gain.sinh(), across / unit * gain.sinh()
    stretch = torch.stack([torch.stack([gain.cosh() - a, -b], 1), torch.stack([-b, gain.cosh() + a], 1)], 1)
    turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)
    height, width = x.shape[2:]
    # affine_grid has coordinates from -1 to 1 on both axes: turns are made where pixels are square.
    half = torch.tensor([width / 2, height / 2], dtype=x.dtype, device=x.device)
    linear = grow[:, None, None] * stretch @ turn * half / half[:, None]
    shift = -torch.stack([right, down], 1) / 4  # 1/8 of the whole is 1/4 of the half
    offset = (linear @ shift[:, :, None])[:, :, 0]
    grid = affine_grid(torch.cat([linear, offset[:, :, None]], 2), list(x.shape), align_corners=False)
    return grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
