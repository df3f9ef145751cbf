r"""A perceptual distance in the features of a classifier that was trained here (Zhang et al. 2018, eq. 1).

With h_l(x) the features of level l of the classifier of noisy samples at the smallest time, and a bar for the vector of
channels at each place divided by its norm,

    d(x, y) = mean over levels l of  mean over places of  ||h_l(x) - h_l(y)||^2,       h_l with the bar.

It is 0 for equal samples and at most 4. Deep features change with the shapes that classes have and little with a shift
by less than a pixel, of which the squared error of the pixels makes a blur.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.data.normalization import Normalization
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.networks.classifier import Classifier
from solvers.errors import InputError

TIME = 1e-5


def check_features(reader: NoisyClassifier, shape: tuple[int, ...] | None) -> None:
    """Refuse a classifier whose features do not serve samples of a shape.

    Raises:
        ValueError: another shape, or a network without levels.
    """
    network = reader.network
    if not isinstance(network, Classifier) or len(network.shape) < 2:
        raise InputError("perceptual features are those of a classifier of images, signals or volumes (--classifier)")
    if network.shape != shape:
        raise InputError(
            f"the classifier of the features is for samples of shape {network.shape}, the autoencoder for {shape}; "
            "train one on the same data: sdediff train --classifier"
        )


def perceptual_distance(reader: NoisyClassifier, x: Tensor, y: Tensor, units: Normalization) -> Tensor:
    """The distance d(x, y) of each sample, (B,).

    Args:
        reader: the classifier, in evaluation mode.
        x: samples (B, ...), in the units of a network.
        y: others.
        units: those of that network; the classifier has units of its own.

    >>> from sde_diffusion.data.normalization import IDENTITY
    >>> from sde_diffusion.sde import VPSDE
    >>> reader = NoisyClassifier(Classifier((1, 8, 8), 10), VPSDE()).eval()
    >>> x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    >>> same = perceptual_distance(reader, x, x, IDENTITY)
    >>> same.item(), bool(perceptual_distance(reader, x, -x, IDENTITY) > 0.01)
    (0.0, True)
    """
    inside = reader.units.to_model(units.to_data(torch.cat([x, y])))
    t = torch.full((len(inside),), TIME, dtype=inside.dtype, device=inside.device)
    distances = []
    for h in reader.network.levels_of(inside, reader.sde.to_step(t)):
        a, b = F.normalize(h, dim=1).chunk(2)
        distances.append((a - b).square().sum(1).flatten(1).mean(1))
    return torch.stack(distances).mean(0)
