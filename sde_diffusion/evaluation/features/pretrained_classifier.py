"""Small classifiers of digits as features: the 64 values before the last layer, and the class probabilities.

Each value is shifted and scaled to mean 0 and standard deviation 1 on the training images, so that a distance is in
units of the spread of real images.

Two come with the package, for the 8 x 8 digits and for MNIST; `python -m benchmarks.classifiers` trains them. Beside
each .safetensors file a .json file records its training and its accuracy on the test split.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion.evaluation.features.extractor import Extractor, Features
from sde_diffusion.storage.atomic_folder import sha256, unpack
from solvers.errors import choose

PRETRAINED = Path(__file__).parent.parent.parent / "pretrained"
SIZES = {"digits": 8, "mnist": 28}
DIMENSIONS = 64


class Network(nn.Module):
    """Three convolutions, two of them halving the image, and two linear layers.

    >>> features, logits = Network(8)(torch.zeros(5, 1, 8, 8))
    >>> features.shape, logits.shape
    (torch.Size([5, 64]), torch.Size([5, 10]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, DIMENSIONS),
        )
        self.register_buffer("mean", torch.zeros(DIMENSIONS))
        self.register_buffer("std", torch.ones(DIMENSIONS))
        self.mean: Tensor
        self.std: Tensor
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(DIMENSIONS, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images (B, 1, size, size) in [-1, 1]."""
        values = self.body(x)
        return (values - self.mean) / self.std, self.head(values)


class Classifier(Extractor):
    """A classifier that comes with the package.

    Args:
        name: "digits" (8 x 8) or "mnist" (28 x 28).

    Raises:
        ValueError: another name.

    >>> Classifier("digits")(torch.zeros(2, 1, 8, 8)).probabilities.sum(1).round(decimals=4)
    tensor([1., 1.])
    """

    def __init__(self, name: str) -> None:
        self._size = choose(name, SIZES, "classifier")
        self._name = name
        path = PRETRAINED / f"{name}-classifier.safetensors"
        self._sha256 = sha256(path)
        self.network = Network(self._size).eval()
        self.network.load_state_dict(unpack(path))

    @property
    def name(self) -> str:
        """The data that it was trained on."""
        return self._name

    @property
    def sha256(self) -> str:
        """The hash of the weights' file."""
        return self._sha256

    @property
    def takes_bytes(self) -> bool:
        """True: they were trained on bytes."""
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        """One channel, 8 x 8 or 28 x 28."""
        return (1, self._size, self._size)

    def compute(self, x: Tensor) -> Features:
        """The values before the last layer, and the probabilities."""
        features, logits = self.network.to(x.device)(x)
        return Features(features, logits.softmax(1))


@lru_cache
def classifier(name: str) -> Classifier:
    """``Classifier(name)``, read once."""
    return Classifier(name)
