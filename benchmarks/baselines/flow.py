r"""A normalising flow of affine couplings (Dinh, Sohl-Dickstein & Bengio 2017), from zuko.

    x = f(z),   z ~ N(0, I),       log p(x) = log N(f^-1(x)) + log |det d f^-1 / dx|,

exact and invertible, at the price of latents as large as the data. Images in [-1, 1] enter as logits (Papamakarios et
al. 2017): y = logit(c + (1 - 2 c) u) / 6 with u in [0, 1] the dequantised value; the 6 gives y about unit scale.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.fitting import LEVEL, Fitted, dequantised, fit
from sde_diffusion.data import Data

EDGE, UNIT = 1e-6, 6.0
STEPS = 700


class Couplings(nn.Module):
    """RealNVP on vectors, or on the logits of images.

    Args:
        shape: of one sample.
        transforms: number of couplings.
        width: of their perceptrons.
        logits: whether the data are dequantised images in [-1, 1].
    """

    def __init__(self, shape: tuple[int, ...], transforms: int = 6, width: int = 256, logits: bool = True) -> None:
        super().__init__()
        from zuko.flows import RealNVP

        self.shape, self.logits = shape, logits
        self.flow = RealNVP(math.prod(shape), transforms=transforms, randmask=True, hidden_features=(width, width))

    def nats(self, x: Tensor) -> Tensor:
        """The exact log-density of dequantised x, (B,)."""
        y, slope = self._enter(x)
        out: Tensor = self.flow().log_prob(y) + slope
        return out

    def _enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The vector y that the flow sees and log |det dy/dx|."""
        x = x.flatten(1)
        if not self.logits:
            return x, x.new_zeros(len(x))
        low, width = -1 - LEVEL / 2, 2 + LEVEL
        u = EDGE + (1 - 2 * EDGE) * ((x - low) / width).clamp(0, 1)
        slope = math.log((1 - 2 * EDGE) / width / UNIT) - torch.log(u) - torch.log1p(-u)
        return torch.logit(u) / UNIT, slope.sum(1)

    def _leave(self, y: Tensor) -> Tensor:
        if not self.logits:
            return y.reshape(-1, *self.shape)
        u = ((torch.sigmoid(UNIT * y) - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)
        return ((2 + LEVEL) * u - 1 - LEVEL / 2).reshape(-1, *self.shape)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draws from the law."""
        return self._leave(self.flow().sample((n,)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """f(f^-1(x)): x, to rounding."""
        transform = self.flow().transform
        return self._leave(transform.inv(transform(self._enter(x)[0])))


def trained(data: Data, seed: int = 0, steps: int = STEPS) -> Fitted:
    """A flow of images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": 128, "learning_rate": 1e-3, "seed": seed, "clip": 500.0}
    return fit(Couplings(data.shape), data, lambda net, x: -net.nats(dequantised(x)), **options)
