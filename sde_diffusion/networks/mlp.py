r"""A residual perceptron for vectors.

    h_0 = W x + b,     h_(k+1) = h_k + B_k silu( A_k silu( (1 + a_k) norm(h_k) + b_k ) ),

where (a_k, b_k) is a linear function of the embedded time and class. The last layer of every block
and of the network starts at zero, so a new network returns exactly 0 and every block starts as the
identity.

With ``frequencies`` the first layer sees [x, cos B x, sin B x] in place of x, where B is drawn once from N(0, b^2) with
the bandwidth b (Tancik et al. 2020, section 4): data of few values and fine structure, of which a perceptron on x alone
learns the coarse part first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks.embeddings import Condition
from sde_diffusion.networks.given import GivenConditions, chosen_settings, read_conditions
from solvers.errors import InputError

Layer = TypeVar("Layer", bound="nn.Linear | nn.modules.conv._ConvNd")


def zero(layer: Layer) -> Layer:
    """Set the weight and bias of a layer to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """One residual block of the perceptron: h + B silu(A silu((1 + a) norm(h) + b))."""

    def __init__(self, width: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.first = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.last = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return the block's output (B, width) for h and condition, both (B, width)."""
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        inner = F.silu(self.first(F.silu(self.norm(h) * (1 + scale) + shift)))
        out: Tensor = h + self.last(self.dropout(inner))
        return out


class MLP(nn.Module):
    """A perceptron of residual blocks, for vectors (B, D) or anything flattened to them.

    Args:
        shape: shape of one sample, (D,); a longer shape is flattened inside.
        width: length of the hidden vectors, even.
        depth: number of residual blocks.
        dropout: probability of dropping a hidden value while training.
        embedding: "log", "sinusoidal" or "fourier" time features.
        classes: number of classes for labels, or None.
        context: length of an augmentation label or another vector, or None.
        variance: whether to return twice the channels, for a learned variance.
        vector: length of a condition vector, or None.
        required: whether a call without the condition vector is refused.
        frequencies: number of random Fourier features of x, rows of B; none by default.
        bandwidth: b, radians for a unit of x.

    Raises:
        ValueError: a size below 1, an odd width, an unknown embedding, a bandwidth that is not positive.

    >>> import torch
    >>> network = MLP((2,), classes=3)
    >>> x, t = torch.randn(5, 2), torch.rand(5)
    >>> network(x, t, torch.tensor([0, 1, 2, 3, 3])).abs().max().item()     # starts at exactly 0
    0.0
    >>> network.settings["width"]
    128
    """

    name: ClassVar[str] = "mlp"

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        depth: int = 4,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        classes: int | None = None,
        context: int | None = None,
        variance: bool = False,
        vector: int | None = None,
        required: bool = False,
        frequencies: int = 0,
        bandwidth: float = 4.0,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if frequencies < 0 or not 0 < bandwidth < math.inf:
            raise InputError(
                f"Fourier features need a number from 0 up and a positive bandwidth; got {frequencies} and {bandwidth}"
            )
        if not self.shape or min(self.shape) < 1 or width < 2 or depth < 1:
            raise InputError(
                f"an MLP needs sizes from 1 up and a width from 2 up; got shape {self.shape}, "
                f"width {width}, depth {depth}"
            )
        self.settings: dict[str, Any] = {
            "shape": list(self.shape),
            "width": width,
            "depth": depth,
            "dropout": dropout,
            "embedding": embedding,
            "classes": classes,
            "context": context,
            "variance": variance,
            **chosen_settings(vector=vector, required=required),
            **({"frequencies": frequencies, "bandwidth": bandwidth} if frequencies else {}),
        }
        size = math.prod(self.shape)
        self.condition = Condition(width, width, embedding, classes, context)
        self.enter = nn.Linear(size + 2 * frequencies, width)
        g = torch.Generator().manual_seed(0)
        drawn = bandwidth * torch.randn(frequencies, size, generator=g, device="cpu") if frequencies else None
        self.directions: Tensor | None
        self.register_buffer("directions", drawn, persistent=False)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zero(nn.Linear(width, size * (2 if variance else 1)))
        self.given = None if vector is None else GivenConditions(self.shape, width, vector, required=required)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output; shapes, conditions and errors are those of ``UNet.forward``."""
        condition, x, _ = read_conditions(self, x, t, label, context, vector=vector)
        x = x.flatten(1)
        if self.directions is not None:
            inner = x @ self.directions.T
            x = torch.cat([x, inner.cos(), inner.sin()], dim=1)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.reshape(len(h), -1, *self.shape[1:])
