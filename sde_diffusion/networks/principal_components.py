r"""A linear autoencoder: coordinates along the principal components of the data.

    z = B^T (x - mean),      x = mean + B z,

with the K orthonormal columns of B along which the data vary most. Of all linear autoencoders it has the least squared
error. On Gaussian data the latents are Gaussian too, with independent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from solvers.errors import InputError


class PrincipalComponents(nn.Module):
    """A linear autoencoder of samples of any shape; its latents are vectors.

    Args:
        shape: shape of one sample.
        components: number K of components.

    Raises:
        ValueError: fewer than 1 or more components than a sample has values.

    >>> network = PrincipalComponents((3,), 2)
    >>> network.decode(network.encode(torch.tensor([[1.0, 2.0, 3.0]])))
    tensor([[1., 2., 0.]])
    """

    name: ClassVar[str] = "principal-components"
    mean: Tensor
    basis: Tensor

    def __init__(self, shape: Sequence[int], components: int) -> None:
        """Build the buffers: no mean, and the first K entries of a sample."""
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        self.settings: dict[str, Any] = {"shape": list(self.shape), "components": components}
        values = math.prod(self.shape)
        if not 1 <= components <= values:
            raise InputError(f"samples of {values} values have 1 to {values} components; got {components}")
        self.latent_shape = (components,)
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.eye(values, components))

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates (B, K) of x (B, *shape).

        Raises:
            ValueError: samples of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the components are of samples {self.shape}; got samples {tuple(x.shape[1:])}")
        return (x.flatten(1) - self.mean) @ self.basis

    def decode(self, z: Tensor) -> Tensor:
        """Return the samples (B, *shape) with coordinates z (B, K).

        Raises:
            ValueError: another number of coordinates.
        """
        if tuple(z.shape[1:]) != self.latent_shape:
            raise InputError(f"samples have {self.latent_shape} coordinates; got {tuple(z.shape[1:])}")
        return (self.mean + z @ self.basis.T).reshape(-1, *self.shape)
