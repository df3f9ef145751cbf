r"""The distance of laws by which tuning judges noise.

A solver that draws noise does not end where the flow from the same initial noise ends, so the RMS distance to the flow
cannot value it. The Frechet distance of features can: that of samples to real samples, without the bias of the number
of samples (``evaluation.metrics.frechet``). Two solvers are compared from the same initial noise, and the standard
error of the difference comes from random halves that take the same rows of both (``evaluation.metrics.paired``).

The real samples are split in two: one half is for the choice, the other for the decision on what was chosen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.evaluation.features import Extractor, default_features, make_extractor
from sde_diffusion.evaluation.metrics import Estimate, Moments, frechet_difference, unbiased_frechet_distance
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.record_types import ExtractorEntry
from solvers.errors import InputError, InputTypeError

GIVEN, ENDPOINTS = "given samples", "endpoints of the reference solution"
_BATCH = 256
_DRAWS, _FEW_DRAWS, _MANY_FEATURES = 40, 10, 256  # a distance takes the cube of the features
_LEAST_PER_FEATURE, _LEAST = 2, 16  # samples


@dataclass(frozen=True, eq=False)
class LawDistance:
    """The Frechet distance of samples to real ones, with one half of the real samples for choosing and one for testing.

    Args:
        extractor: the features.
        to_samples: maps endpoints in the units of the network to samples.
        features: (m, d) features of the real samples.
        real: what the real samples are, for the record.

    >>> identity = make_extractor(lambda x: x)
    >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> law = LawDistance(identity, lambda x: x, x, "given samples")
    >>> law.distance(law.of(x[:200])) < 0.1 < 1 < law.distance(law.of(x[:200] + 2))
    True
    """

    extractor: Extractor
    to_samples: Callable[[Tensor], Tensor]
    features: Tensor
    real: str

    @property
    def least(self) -> int:
        """The fewest samples that have a distance."""
        return least_samples(self.features.shape[1])

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """The features (B, d) of endpoints (B, ...), NaN for endpoints that are not finite."""
        return features_of_samples(self.extractor, self.to_samples(x))

    def distance(self, features: Tensor, testing: bool = False) -> float:
        """The squared distance; infinite where a sample is not finite, or has no distance."""
        if not bool(features.isfinite().all()):
            return math.inf
        return unbiased_frechet_distance(features, self._moments(testing)).value

    def difference(self, a: Tensor, b: Tensor, testing: bool = False) -> Estimate:
        """The squared distance of a less that of b, whose rows belong to the same initial noise."""
        if not bool(a.isfinite().all()):
            return Estimate(math.inf, 0.0)
        draws = _DRAWS if a.shape[1] <= _MANY_FEATURES else _FEW_DRAWS
        return frechet_difference(a, b, self._moments(testing), draws=draws)

    def _moments(self, testing: bool) -> Moments:
        return Moments.of(self.features[int(testing) :: 2])

    def entry(self) -> ExtractorEntry:
        """The extractor, for a record."""
        made = self.extractor
        return ExtractorEntry(name=made.name, sha256=made.sha256, preprocessing=made.preprocessing)


@torch.no_grad()
def features_of_samples(extractor: Extractor, x: Tensor) -> Tensor:
    """The features (B, d) of samples, float64 on the CPU, NaN for samples that are not finite."""
    whole = x.flatten(1).isfinite().all(1)
    parts = torch.split(torch.where(whole.reshape(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x)), _BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bad candidate may be far outside of black and white
        found = torch.cat([extractor(part).features for part in parts]).double().cpu()
    found[~whole.cpu()] = math.nan
    return found


def extractor_for(
    model: ScoreModel, shape: tuple[int, ...], features: str | Extractor | Callable[[Tensor], Tensor] | None
) -> Extractor:
    """The features by which noise is judged; by default those for samples of this shape.

    Args:
        model: the model.
        shape: shape of its x.
        features: a name, an Extractor or a function.

    Raises:
        InputError: samples without features of their own, or features of another shape.
    """
    own = shape if model.decoder is None else tuple(model.sample_shape or shape)
    if features is None:
        features = default_features(own)
    if features == "pca":
        raise InputError(
            f"samples of shape {own} have no features of their own to judge noise by, and 'pca' is fitted to data; "
            "give features=make_extractor('pca', fit=...), a name or a function (the command: --features pca)"
        )
    found = make_extractor(features)
    if found.shape is not None and found.shape != own:
        raise InputError(f"the features '{found.name}' take samples of shape {found.shape}, and the model makes {own}")
    return found


def law_of_real(model: ScoreModel, shape: tuple[int, ...], extractor: Extractor, real: Tensor) -> LawDistance:
    """The distance to given real samples.

    Args:
        model: the model.
        shape: shape of its x.
        extractor: the features.
        real: (m, ...) samples as ``sample`` returns them.

    Raises:
        InputTypeError: real samples that are no tensor of floats.
        InputError: real samples of another shape, or values that are not finite.
    """
    own = shape if model.decoder is None else tuple(model.sample_shape or shape)
    if not isinstance(real, Tensor) or not real.dtype.is_floating_point:
        kind = f"a tensor of {real.dtype}" if isinstance(real, Tensor) else type(real).__name__
        raise InputTypeError(f"real is a tensor of real samples in the units of the model's, floats; got {kind}")
    if tuple(real.shape[1:]) != own or len(real) == 0:
        raise InputError(f"the model makes samples of shape {own}; the real ones have shape {tuple(real.shape)}")
    if bad := int((~real.flatten(1).isfinite().all(1)).sum()):
        raise InputError(f"{bad} of {len(real)} real samples are not finite; clean or drop them")
    return LawDistance(extractor, model.to_samples, features_of_samples(extractor, real), GIVEN)


def least_samples(dimensions: int) -> int:
    """The fewest samples that have a distance.

    >>> least_samples(64), least_samples(1)
    (128, 16)
    """
    return max(_LEAST_PER_FEATURE * dimensions, _LEAST)


def require_enough(dimensions: int, real: int, drawn: float, kind: str) -> None:
    """Refuse numbers of samples that are too few for a distance.

    Args:
        dimensions: of the features.
        real: number of real samples.
        drawn: number of samples that will be drawn.
        kind: what the real samples are.

    Raises:
        InputError: see above.
    """
    least = least_samples(dimensions)
    if real < 2 * least:
        more = "more of them" if kind == GIVEN else "real samples, real=..., or more noise_samples and held_out"
        raise InputError(
            f"noise is judged by {dimensions} features against {least} real samples for the choice and {least} for the "
            f"decision; got {real} {kind}; give {more}, or fewer features"
        )
    if drawn < least:
        raise InputError(
            f"the distance of {dimensions} features takes {least} samples or more; got law_samples = {drawn}"
        )
