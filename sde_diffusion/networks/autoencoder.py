r"""Convolutional autoencoders of images, signals and volumes, with a KL or VQ bottleneck (Rombach et al. 2022, 3.1).

The encoder goes down through levels of falling resolution, the decoder up again:

    x (C, H, W)  ->  z (latent, H / f, W / f)  ->  x,        f = 2^(levels - 1).

kl    the encoder gives mean and log variance of a normal posterior q(z | x); training decodes a draw from it
vq    the encoder gives z, and the decoder sees the nearest code at each place (``quantizer``)

In both the latents of a diffusion model are continuous, the mean of kl and z of vq before the codebook: the decoder of
vq quantizes what the diffusion model has drawn. No layer normalizes over channels or places of z, whose units are
measured when data are encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks.mlp import zero
from sde_diffusion.networks.quantizer import Quantizer
from sde_diffusion.networks.unet import CONVOLUTIONS, group_norm
from solvers.errors import InputError, choose

BOTTLENECKS = ("kl", "vq")
"""Kinds of autoencoders."""
_QUIETEST, _LOUDEST = -30.0, 20.0  # of a log variance


class Coded(NamedTuple):
    """What an autoencoder makes of x.

    Attributes:
        x: the reconstruction.
        z: the mean of the latents, or the latents before the codebook.
        log_variance: of the posterior; None for vq.
        codes: the numbers of the codes; None for kl.
        quantized: the codes at each place, without gradient; None for kl.
    """

    x: Tensor
    z: Tensor
    log_variance: Tensor | None
    codes: Tensor | None
    quantized: Tensor | None


def default_multipliers(shape: Sequence[int]) -> list[int]:
    """Return the multipliers of an autoencoder by default: latents of 4 and more on a side, at most 3 halvings.

    >>> default_multipliers((1, 8, 8)), default_multipliers((1, 28, 28)), default_multipliers((3, 64, 64))
    ([1, 2], [1, 2, 2], [1, 2, 2, 4])
    >>> default_multipliers((1, 30, 30))
    [1, 2]
    """
    found, sizes = [1], list(shape[1:])
    for multiplier in (2, 2, 4):
        large = multiplier < 4 or min(sizes) >= 16
        if not sizes or any(size % 2 for size in sizes) or min(sizes) < 8 or not large:
            break
        found.append(multiplier)
        sizes = [size // 2 for size in sizes]
    return found


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, (B, enter, ...) -> (B, leave, ...)."""

    def __init__(self, enter: int, leave: int, axes: int) -> None:
        """Build the layers."""
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.norm1 = group_norm(enter)
        self.conv1 = conv(enter, leave, 3, padding=1)
        self.norm2 = group_norm(leave)
        self.conv2 = zero(conv(leave, leave, 3, padding=1))
        self.skip = nn.Identity() if enter == leave else conv(enter, leave, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's output for features h."""
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
        out: Tensor = self.skip(h) + inner
        return out


class Autoencoder(nn.Module):
    """An autoencoder of samples (C, L), (C, H, W) or (C, D, H, W).

    Args:
        shape: shape of one sample; 2^(levels - 1) divides its sizes.
        bottleneck: "kl" or "vq".
        latent_channels: channels of z.
        channels: feature channels of the first level.
        multipliers: channels of each level, in units of `channels`; their number is that of the levels.
        blocks: residual blocks per level and direction.
        codes: codes of vq.

    Raises:
        ValueError: sizes that do not fit one another.

    >>> network = Autoencoder((1, 28, 28), "kl", channels=8)
    >>> network.latent_shape, network.decode(network.encode(torch.zeros(2, 1, 28, 28))).shape
    ((4, 7, 7), torch.Size([2, 1, 28, 28]))
    """

    name: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        shape: Sequence[int],
        bottleneck: str = "kl",
        latent_channels: int = 4,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        codes: int = 512,
    ) -> None:
        """Build the layers."""
        super().__init__()
        choose(bottleneck, dict.fromkeys(BOTTLENECKS), "bottleneck of an autoencoder")
        self.shape = tuple(int(size) for size in shape)
        self.settings: dict[str, Any] = {
            "shape": list(self.shape),
            "bottleneck": bottleneck,
            "latent_channels": latent_channels,
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "codes": codes,
        }
        axes = len(self.shape) - 1
        if axes not in CONVOLUTIONS or min(self.shape) < 1:
            raise InputError(
                f"an autoencoder works on (C, L), (C, H, W) or (C, D, H, W); got shape {self.shape}. The latents of "
                "vectors are principal components: sde_diffusion.models.autoencoder.principal_components"
            )
        if not multipliers or min(latent_channels, channels, blocks, *multipliers) < 1:
            raise InputError(
                f"an autoencoder has sizes from 1 up; got latent_channels {latent_channels}, channels {channels}, "
                f"blocks {blocks}, multipliers {tuple(multipliers)}"
            )
        factor = 2 ** (len(multipliers) - 1)
        if any(size % factor for size in self.shape[1:]):
            raise InputError(
                f"{len(multipliers)} levels halve the sample {len(multipliers) - 1} times, and {factor} does not "
                f"divide {' x '.join(map(str, self.shape[1:]))}; give fewer multipliers (--multipliers), or data of "
                "another --size"
            )
        self.latent_shape = (latent_channels, *(size // factor for size in self.shape[1:]))
        conv, widths = CONVOLUTIONS[axes], [channels * m for m in multipliers]

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(width, width, axes) for _ in range(blocks)))

        down: list[nn.Module] = [conv(self.shape[0], widths[0], 3, padding=1), level(widths[0])]
        for a, b in pairwise(widths):
            down += [conv(a, b, 3, stride=2, padding=1), level(b)]
        self.down = nn.Sequential(*down, group_norm(widths[-1]), nn.SiLU())
        self.leave = conv(widths[-1], latent_channels * (2 if bottleneck == "kl" else 1), 1)
        self.quantizer = Quantizer(codes, latent_channels) if bottleneck == "vq" else None
        up: list[nn.Module] = [conv(latent_channels, widths[-1], 3, padding=1), level(widths[-1])]
        for a, b in pairwise(widths[::-1]):
            up += [nn.Upsample(scale_factor=2.0, mode="nearest"), conv(a, b, 3, padding=1), level(b)]
        self.up = nn.Sequential(*up, group_norm(widths[0]), nn.SiLU(), conv(widths[0], self.shape[0], 3, padding=1))

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer of the decoder."""
        last = self.up[-1].weight
        assert isinstance(last, Tensor)
        return last

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and log variance of the latents of x; z and None for vq.

        Raises:
            ValueError: samples of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"the autoencoder is for samples of shape {self.shape}; got samples of shape {tuple(x.shape[1:])}"
            )
        z = self.leave(self.down(x))
        if self.quantizer is not None:
            return z, None
        mean, log_variance = z.chunk(2, dim=1)
        return mean, log_variance.clamp(_QUIETEST, _LOUDEST)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents (B, *latent_shape) of x (B, *shape): the mean of the posterior."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the samples (B, *shape) of latents (B, *latent_shape), through the codebook where there is one.

        Raises:
            ValueError: latents of another shape.
        """
        if tuple(z.shape[1:]) != self.latent_shape:
            raise InputError(
                f"the autoencoder has latents of shape {self.latent_shape}; got latents of shape {tuple(z.shape[1:])}"
            )
        if self.quantizer is not None:
            z = self.quantizer(z)[0]
        out: Tensor = self.up(z)
        return out

    def forward(self, x: Tensor) -> Coded:
        """Return reconstruction and latents of x; those of kl are drawn from the posterior in training mode."""
        z, log_variance = self.posterior(x)
        if log_variance is not None:
            inside = z
            if self.training:
                inside = z + torch.exp(log_variance / 2) * torch.randn_like(z)
            return Coded(self.up(inside), z, log_variance, None, None)
        assert self.quantizer is not None
        through, codes = self.quantizer(z)
        return Coded(self.up(through), z, None, codes, through.detach())
