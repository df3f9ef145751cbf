r"""The code of an image: the semantic half of a diffusion autoencoder (Preechakul et al. 2022).

    z = E(image),      E: convolutions that halve the image, and a linear layer,

and a linear function of z is added to the conditioning vector of the network, which modulates every block. E is trained
with the network by the same loss, so z holds what helps to denoise the image at every noise level: what is drawn, and
not the noise. The rest of the image is in x_1, the code of the probability flow given z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solvers.errors import InputError

_CHANNELS = 32
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class SemanticCode(nn.Module):
    """An encoder of images, and what a network makes of their codes.

    Args:
        shape: shape of an image (C, ...).
        code: length K of a code.
        width: length of the conditioning vector.

    >>> layer = SemanticCode((1, 8, 8), code=4, width=16)
    >>> z = layer.encode(torch.zeros(2, 1, 8, 8))
    >>> z.shape, layer(z, 2).shape
    (torch.Size([2, 4]), torch.Size([2, 16]))
    """

    def __init__(self, shape: Sequence[int], code: int, width: int) -> None:
        """Build the layers."""
        super().__init__()
        conv = _CONVOLUTIONS[len(shape) - 1]
        self.code = code
        halvings = max(1, min(3, int(math.log2(max(min(shape[1:]), 2))) - 1))
        layers: list[nn.Module] = [conv(shape[0], _CHANNELS, 3, padding=1)]
        enter = _CHANNELS
        for k in range(halvings):
            leave = _CHANNELS * 2 ** min(k + 1, 2)
            layers += [nn.SiLU(), nn.GroupNorm(8, enter), conv(enter, leave, 3, stride=2, padding=1)]
            enter = leave
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.GroupNorm(8, enter))
        places = math.prod(-(-size // 2**halvings) for size in shape[1:])
        self.last = nn.Linear(enter * places, code)
        self.leave = nn.Linear(code, width)
        self.none = nn.Parameter(torch.zeros(width))

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes (B, K) of standardized images (B, C, ...); those of NaN images are NaN."""
        missing = z.isnan().flatten(1).any(1, keepdim=True)
        code: Tensor = self.last(self.body(z.nan_to_num(0.0).to(self.last.weight.dtype)).flatten(1))
        return code.masked_fill(missing, math.nan)

    def forward(self, code: Tensor | None, batch: int) -> Tensor:
        """Return what is added to the conditioning vector, (B, width).

        Args:
            code: (B, K); rows of NaN mean none. None means none for the whole batch.
            batch: B.

        Raises:
            ValueError: codes of another shape.
        """
        if code is None:
            return self.none.expand(batch, -1)
        if code.shape != (batch, self.code):
            raise InputError(f"code has shape {tuple(code.shape)}; expected {(batch, self.code)}, one for each sample")
        missing = code.isnan().any(1, keepdim=True)
        return torch.where(missing, self.none, self.leave(code.nan_to_num(0.0).to(self.leave.weight.dtype)))
