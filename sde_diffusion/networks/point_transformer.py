r"""A transformer on sets of points, (B, C, N) with any N.

Each point is a token: its C coordinates, and sines and cosines of them. The blocks are those of the diffusion
transformer (``networks.dit``) without positions, so the network has no means to tell the order of the points:

    f(P x, t) = P f(x, t)                       for every permutation P of the points,

and the law of its samples is that of a set. Nothing depends on N; attention costs N^2. A network that was trained on N
points samples clouds of another number as well: what it has learned is the law of a point given the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sde_diffusion.networks.dit import Transformer
from sde_diffusion.networks.embeddings import Condition
from solvers.errors import InputError

_WAVES = (1.0, 2.0, 4.0, 8.0)  # rad for each unit of the normalized coordinates


class PointTransformer(Transformer):
    """A permutation-equivariant transformer for clouds of points (C, N).

    Args:
        shape: shape of one sample (C, N), C coordinates of N points; N may be another in every call.
        width: length of a token, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads.
        dropout: probability of dropping a hidden value while training.
        embedding: "log", "sinusoidal" or "fourier" time features.
        classes: number of classes for labels, or None.
        context: length of a condition vector, or None.
        variance: whether to return twice the coordinates, for a learned variance.

    Raises:
        ValueError: sizes that do not fit one another, an unknown embedding.

    >>> network = PointTransformer((3, 64), width=16, depth=1, heads=2)
    >>> network(torch.randn(2, 3, 100), torch.rand(2)).shape                  # starts at exactly 0
    torch.Size([2, 3, 100])
    """

    name: ClassVar[str] = "points"

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        embedding: str = "log",
        classes: int | None = None,
        context: int | None = None,
        variance: bool = False,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise InputError(
                f"a point transformer works on clouds (C, N), C coordinates of N points; got shape {self.shape}"
            )
        if min(width, depth, heads) < 1 or width % heads:
            raise InputError(f"a width of {width} cannot be shared by {heads} heads, in {depth} blocks")
        self.settings: dict[str, Any] = {
            "shape": list(self.shape),
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "embedding": embedding,
            "classes": classes,
            "context": context,
            "variance": variance,
        }
        coordinates = self.shape[0]
        self.condition = Condition(width, width, embedding, classes, context)
        enters, leaves = coordinates * (1 + 2 * len(_WAVES)), coordinates * (2 if variance else 1)
        self.add_layers(enters, leaves, width, depth, heads, dropout)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the network's output, shaped like x, or with twice its coordinates.

        Args:
            x: noisy clouds, (B, C, N) with any N.
            t: one time per sample, (B,).
            label: (B,) int64; `classes` means no class. None means no class for the whole batch.
            context: (B, length); rows of NaN mean none. None means none for the whole batch.

        Raises:
            ValueError: shapes that do not fit, labels without classes or outside 0..classes.
        """
        if x.ndim != 3 or x.shape[1] != self.shape[0] or x.shape[2] < 1:
            raise InputError(
                f"x has shape {tuple(x.shape)}; this network takes clouds (B, {self.shape[0]}, N), coordinates first"
            )
        if t.shape != x.shape[:1]:
            raise InputError(f"t has shape {tuple(t.shape)}; expected one time per sample, ({len(x)},)")
        condition = nn.functional.silu(self.condition(t, label, context))
        points = x.transpose(1, 2)
        waves = [f(frequency * points) for frequency in _WAVES for f in (torch.sin, torch.cos)]
        return self.through(self.enter(torch.cat([points, *waves], dim=2)), condition).transpose(1, 2)
