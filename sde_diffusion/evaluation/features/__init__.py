"""Feature extractors by name: metrics compare samples by their features.

=========  ==========================================================  ===========================
name       what                                                        takes
=========  ==========================================================  ===========================
pixels     the values themselves                                       anything
pca        coordinates along the principal axes of the reference       anything
digits     64 values of a classifier of the 8 x 8 digits, bundled      (1, 8, 8)
mnist      64 values of a classifier of MNIST, bundled                 (1, 28, 28)
inception  2048 values of Inception-v3; extra `inception`              images
dinov2     384 values and more of DINOv2; extra `dinov2`               images
=========  ==========================================================  ===========================

The last four round images to bytes; the others take unscaled values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from torch import Tensor

from sde_diffusion.evaluation.features.dinov2 import DINOv2
from sde_diffusion.evaluation.features.extractor import Extractor, Features, InRange
from sde_diffusion.evaluation.features.inception import Inception
from sde_diffusion.evaluation.features.pretrained_classifier import SIZES, classifier
from sde_diffusion.evaluation.features.simple import PCA, CustomExtractor, Pixels
from solvers.errors import InputError, choose

NAMES = ("pixels", "pca", *SIZES, "inception", "dinov2")
"""Names of the feature extractors."""
WEIGHED = ("inception", "dinov2")
"""Those that read weights from a file."""

__all__ = [
    "NAMES",
    "PCA",
    "CustomExtractor",
    "DINOv2",
    "Extractor",
    "Features",
    "InRange",
    "Inception",
    "Pixels",
    "default_features",
    "make_extractor",
]


def default_features(shape: tuple[int, ...], *, of_bytes: bool = True) -> str:
    """Default feature extractor for a sample shape; a classifier of digits only where the samples are bytes.

    >>> [default_features(shape) for shape in ((1, 8, 8), (1, 28, 28), (2,), (3, 32, 32))]
    ['digits', 'mnist', 'pixels', 'pca']
    >>> default_features((1, 8, 8), of_bytes=False)
    'pca'
    """
    for name, size in SIZES.items():
        if of_bytes and shape == (1, size, size):
            return name
    return "pixels" if len(shape) == 1 and shape[0] <= 256 else "pca"


def make_extractor(
    features: str | Extractor | Callable[[Tensor], Tensor],
    *,
    fit: Callable[[], Tensor] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    weights: str | os.PathLike[str] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Extractor:
    """An extractor by its name.

    Args:
        features: a name in ``NAMES``, an Extractor, or your own function.
        fit: gives the samples whose principal axes "pca" takes.
        tensors: of an extractor that was stored with a reference, instead of ``fit``.
        weights: path of the weights of inception or dinov2.
        value_range: black and white, for features of bytes and samples where they are not -1 and 1.

    Raises:
        ValueError: an unknown name, "pca" with nothing to fit to, or a range or weights for features that need none.
        FileNotFoundError, ImportError: as the extractors.

    >>> make_extractor("pixels").name
    'pixels'
    """
    if value_range is not None:
        return InRange(make_extractor(features, fit=fit, tensors=tensors, weights=weights), *value_range)
    if isinstance(features, Extractor):
        return features
    if not isinstance(features, str):
        return CustomExtractor(features)
    choose(features, dict.fromkeys(NAMES), "features")
    if weights is not None and features not in WEIGHED:
        raise InputError(f"only {' and '.join(WEIGHED)} take weights (--weights); the features {features} need none")
    if features in SIZES:
        return classifier(features)
    if features == "inception":
        return Inception(weights)
    if features == "dinov2":
        return DINOv2(weights)
    if features == "pixels":
        return Pixels()
    if tensors:
        return PCA(tensors["mean"], tensors["axes"])
    if fit is None:
        raise InputError(
            "the features 'pca' are fitted to the reference: give its samples, or a reference made with them"
        )
    return PCA.fit(fit())
