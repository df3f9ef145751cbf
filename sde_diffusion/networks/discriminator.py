"""A discriminator of patches: logits on a coarse grid, each of a part of the sample (Isola et al. 2017, section 3.2).

Convolutions of stride 2 halve the grid, two more follow. The loss of an autoencoder uses it (Esser et al. 2021, 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sde_diffusion.networks.unet import CONVOLUTIONS, group_norm
from solvers.errors import InputError

HALVINGS = 3  # at most
SMALLEST = 4  # places on a side of the last grid, as far as the sample allows


class PatchDiscriminator(nn.Module):
    """Logits of patches, (B, C, H, W) -> (B, 1, H / f, W / f); likewise for signals and volumes.

    Args:
        shape: shape of one sample.
        channels: channels of the first level, doubled at each halving.

    Raises:
        ValueError: samples without a grid.

    >>> import torch
    >>> PatchDiscriminator((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 1, 7, 7])
    """

    def __init__(self, shape: Sequence[int], channels: int = 32) -> None:
        """Build the layers."""
        super().__init__()
        axes, side = len(shape) - 1, min(shape[1:], default=0)
        if axes not in CONVOLUTIONS or channels < 1:
            raise InputError(
                f"a discriminator works on (C, L), (C, H, W) or (C, D, H, W), with channels from 1 up; got shape "
                f"{tuple(shape)}, channels {channels}"
            )
        halvings = sum(side >= SMALLEST * 2**k for k in range(1, HALVINGS + 1))
        conv, widths = CONVOLUTIONS[axes], [channels * 2**k for k in range(halvings + 1)]
        layers: list[nn.Module] = [conv(shape[0], channels, 3, padding=1), nn.LeakyReLU(0.2)]
        for a, b in pairwise(widths):
            layers += [conv(a, b, 4, stride=2, padding=1), group_norm(b), nn.LeakyReLU(0.2)]
        last = conv(widths[-1], widths[-1], 3, padding=1)
        self.layers = nn.Sequential(*layers, last, nn.LeakyReLU(0.2), conv(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of x."""
        out: Tensor = self.layers(x)
        return out
