r"""An autoencoder as a model on disk: latents of samples, and samples of latents, in units of the data.

    z = encode((x - shift) / scale),      x = shift + scale decode(z)

shift and scale are the units of the data that the network sees. It is described, trained and stored as a score model
is, and refuses to be used as one. The units of z, in which a latent diffusion model works, are measured on the latents
of its data and belong to that model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data import Data
from sde_diffusion.data.normalization import Normalization, measure_normalization
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.parametrization import WithoutScore
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks.principal_components import PrincipalComponents
from sde_diffusion.sde import SDE, VPSDE

LATENT = "latent"
BATCH = 256
_MOST = 2**26  # values of the data that principal components are found on


@dataclass(frozen=True)
class LatentPrediction(WithoutScore):
    """The output is a reconstruction of x_0 without noise, of which there is no score."""

    name = LATENT
    refusal = (
        "an autoencoder is no score model: it has no distribution to sample from; train a model on its latents: "
        "sdediff train --latent RUN"
    )


class AutoencoderModel(ScoreModel):
    """The autoencoder of a network with ``encode``, ``decode`` and ``latent_shape``.

    Args:
        network: the network.
        sde: a process, which the format of models has; an autoencoder does not use it.
        shape: shape of one sample.
        normalization: units of the data that the network sees.
        reader: a classifier for the perceptual distance of training; it is no part of the model and of its weights.

    >>> new = AutoencoderModel(PrincipalComponents((3,), 2), VPSDE(), (3,))
    >>> new.decode(new.encode(torch.tensor([[1.0, 2.0, 3.0]]))), new.latent_shape
    (tensor([[1., 2., 0.]]), (2,))
    """

    def __init__(
        self,
        network: Any,
        sde: SDE,
        shape: tuple[int, ...] | None = None,
        normalization: Normalization | None = None,
        reader: NoisyClassifier | None = None,
    ) -> None:
        super().__init__(network, sde, LatentPrediction(), shape, normalization=normalization)
        self.__dict__["_reader"] = reader

    @property
    def reader(self) -> NoisyClassifier | None:
        """The classifier for the perceptual distance of training."""
        own: NoisyClassifier | None = self.__dict__.get("_reader")
        return own

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of one sample."""
        return tuple(self.network.latent_shape)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, *latent_shape) of samples x (B, *shape), in units of the data.

        Raises:
            ValueError: samples of another shape.
        """
        parts = (self.network.encode(self._inside(self.units.to_model(part))) for part in torch.split(x, BATCH))
        return torch.cat([part.to(x.dtype) for part in parts])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Samples (B, *shape), in units of the data, of latents z (B, *latent_shape).

        Raises:
            ValueError: latents of another shape.
        """
        parts = (
            self.units.to_data(self.network.decode(self._inside(part)).to(z.dtype)) for part in torch.split(z, BATCH)
        )
        return torch.cat(list(parts))

    def _inside(self, x: Tensor) -> Tensor:
        weight = next(self.network.parameters(), None)
        if weight is None:
            weight = next(self.network.buffers(), None)
        return x if weight is None else x.to(device=weight.device, dtype=weight.dtype)

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Refused: an autoencoder has no score."""
        LatentPrediction().refuse()

    forward = denoise


def principal_components(data: Data, components: int) -> AutoencoderModel:
    """The linear autoencoder of a data set, from the eigenvectors of its covariance.

    Args:
        data: the samples; evenly spaced ones of a large set are taken.
        components: the length of the latents.

    Raises:
        ValueError: more components than values in a sample.

    >>> from sde_diffusion.data import as_data
    >>> line = as_data([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> model = principal_components(line, 1)
    >>> model.decode(model.encode(torch.tensor([[3.0, 3.0]]))).round(decimals=4)
    tensor([[3., 3.]])
    """
    network = PrincipalComponents(data.shape, components)
    count = min(len(data), max(2, _MOST // data.x[0].numel()))
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).round().long()
    units = measure_normalization(data, "none")
    x = data.batch(index).double().flatten(1)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :components]
    network.mean.copy_(mean)
    network.basis.copy_(vectors)
    return AutoencoderModel(network, VPSDE(), data.shape, units).eval()
