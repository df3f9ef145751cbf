r"""The autoencoder of a latent model: from images to the latents that the model was trained on, and back.

    z = (encode(image) - shift) scale,      image = decode(z / scale + shift)

with scale and shift of the autoencoder's config (scaling_factor, shift_factor), so that the variance of latents is
about 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.models.outputs import tensor_of
from solvers.errors import InputTypeError


class Autoencoder(nn.Module):
    """An AutoencoderKL (or another with ``encode`` and ``decode``) with the scale of its latents.

    Args:
        network: the autoencoder of a pipeline, ``pipeline.vae``.

    Raises:
        TypeError: no ``encode`` and ``decode``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not (hasattr(network, "encode") and hasattr(network, "decode")):
            raise InputTypeError(f"an autoencoder has encode and decode; {type(network).__name__} has not")
        config = dict(getattr(network, "config", {}))
        self.network: Any = network
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)

    def _inside(self, x: Tensor) -> Tensor:
        weight = next(self.parameters(), None)
        return x if weight is None else x.to(device=weight.device, dtype=weight.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, h, w) of images (B, C, H, W) in [-1, 1]: the mean of the posterior."""
        found = self.network.encode(self._inside(images))
        law = getattr(found, "latent_dist", None)
        mean = getattr(found, "latents", None) if law is None else law.mean
        mean = tensor_of(found) if mean is None else mean
        return (mean.to(images.dtype) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), in about [-1, 1], of latents."""
        return tensor_of(self.network.decode(self._inside(latents / self.scale + self.shift))).to(latents.dtype)
