"""Features without a network: the values themselves, their principal components, or your own function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.evaluation.features.extractor import Extractor, Features
from sde_diffusion.storage.atomic_folder import pack
from solvers.errors import InputError


@dataclass(frozen=True)
class Pixels(Extractor):
    """The values of a sample in one row.

    >>> Pixels()(torch.tensor([[[[280.0, 0.1]]]])).features
    tensor([[2.8000e+02, 1.0000e-01]])
    """

    name = "pixels"
    sha256 = hashlib.sha256(b"pixels").hexdigest()

    def compute(self, x: Tensor) -> Features:
        """The values."""
        return Features(x.flatten(1))


@dataclass(frozen=True, eq=False)
class PCA(Extractor):
    """Coordinates along the principal axes of real data.

    Args:
        mean: (D,) of the data.
        axes: (D, d) orthonormal, of decreasing variance.

    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.02], [-2.0, 0.02]])
    >>> PCA.fit(x, 1)(torch.tensor([[1.0, 5.0]])).features.abs().round(decimals=2)
    tensor([[1.]])
    """

    mean: Tensor
    axes: Tensor
    name = "pca"

    @classmethod
    def fit(cls, x: Tensor, dimensions: int = 64) -> PCA:
        """The axes of the largest variance of samples (n, ...).

        Args:
            x: samples.
            dimensions: number of axes; no more than the samples span.

        Raises:
            ValueError: fewer than 2 samples or 1 dimension.
        """
        if len(x) < 2 or dimensions < 1:
            raise InputError(
                f"principal axes need 2 samples or more and 1 dimension or more; got {len(x)}, {dimensions}"
            )
        flat = x.flatten(1).double().cpu()
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean)
        axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : min(dimensions, len(x) - 1)]
        return cls(mean.float(), axes.float().contiguous())

    @property
    def sha256(self) -> str:
        """The hash of mean and axes."""
        return hashlib.sha256(pack(self.tensors)).hexdigest()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Mean and axes."""
        return {"mean": self.mean, "axes": self.axes}

    def compute(self, x: Tensor) -> Features:
        """The coordinates."""
        if x[0].numel() != len(self.mean):
            raise InputError(f"samples of {x[0].numel()} values, but these principal axes have {len(self.mean)}")
        return Features((x.flatten(1) - self.mean.to(x.device)) @ self.axes.to(x.device))


@dataclass(frozen=True, eq=False)
class CustomExtractor(Extractor):
    """Your own function or module as features.

    Args:
        function: maps unscaled samples (B, ...) to (B, ...).
        label: name in tables; the function's name by default.
        version: enters the hash, as do the weights of a module; raise it when a function without weights changes.

    >>> CustomExtractor(lambda x: x.mean((1, 2, 3))[:, None], "brightness")(torch.ones(2, 1, 4, 4)).features
    tensor([[1.],
            [1.]])
    """

    function: Callable[[Tensor], Tensor]
    label: str | None = None
    version: str = ""

    @property
    def name(self) -> str:
        """The label."""
        return self.label or str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    @property
    def sha256(self) -> str:
        """The hash of name, version and weights."""
        weights = pack(self.function.state_dict()) if isinstance(self.function, nn.Module) else b""
        return hashlib.sha256(f"{self.name}/{self.version}/".encode() + weights).hexdigest()

    def compute(self, x: Tensor) -> Features:
        """The values of the function, flattened."""
        out = self.function(x)
        if not isinstance(out, Tensor) or len(out) != len(x):
            raise InputError(
                f"the features '{self.name}' must be a tensor with a row for each of {len(x)} samples; got "
                f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}"
            )
        return Features(out.flatten(1).float())
