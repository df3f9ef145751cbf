r"""The distance of features as what tuning minimises, in place of the RMS distance of the samples themselves.

With an extractor F and the endpoint x_0* of the reference solution from the same initial noise, a sample x_0 has

    error = rms(F(x_0) - F(x_0*)).

The residuals of the least squares are F(x_0) - F(x_0*), and their derivatives J_F dx_0/dq, by differences of F along
each column of dx_0/dq. An extractor that rounds images to bytes takes them without rounding, since a
step function has no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.evaluation.features import NAMES, Extractor, default_features, make_extractor
from sde_diffusion.evaluation.features.pretrained_classifier import SIZES
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.record_types import ExtractorEntry, LossEntry
from solvers.errors import InputError, SdediffError, choose

LOSSES = ("rmse", "features")
_BATCH = 256
_PROBES, _FAR, _NEAR = 8, 1e-2, 1e-3


@dataclass(frozen=True, eq=False)
class FeatureLoss:
    """Features of samples, as a function of endpoints in the units of the network.

    Args:
        extractor: the features.
        to_samples: maps endpoints to samples.
    """

    extractor: Extractor
    to_samples: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The features (B, d) of endpoints (B, ...), in batches."""
        return torch.cat([self.extractor.unrounded(self.to_samples(part)) for part in torch.split(x, _BATCH)])

    def entry(self) -> LossEntry:
        """The loss and its extractor, for a record."""
        made = self.extractor
        about = ExtractorEntry(name=made.name, sha256=made.sha256, preprocessing=made.preprocessing)
        return {"name": "features", "extractor": about}


def loss_for(
    model: ScoreModel,
    shape: tuple[int, ...],
    loss: str,
    features: str | Extractor | Callable[[Tensor], Tensor] | None,
    where: torch.device,
) -> FeatureLoss | None:
    """What ``loss`` and ``features`` of ``tune`` stand for; None for the RMS distance of the samples.

    Args:
        model: the model.
        shape: shape of its x.
        loss: a name in ``LOSSES``.
        features: a name, an Extractor or a function; None for the classifier of images of its size.
        where: the device of the samples, on which the features are tried.

    Raises:
        InputError: an unknown loss, features without effect, or features that do not take these samples or do not
            change smoothly with them.
    """
    choose(loss, dict.fromkeys(LOSSES), "loss")
    if loss == "rmse":
        if features is not None:
            raise InputError(
                "features have no effect on the loss 'rmse'; give loss='features' (--loss features), or "
                "stochastic=True (--stochastic)"
            )
        return None
    sample_shape = shape if model.decoder is None else tuple(model.sample_shape or shape)
    if features is None:
        features = default_features(sample_shape)
        if features not in SIZES:
            raise InputError(
                f"samples of shape {sample_shape} have no features of their own; name some of {', '.join(NAMES)} "
                "(--features), or give a function"
            )
    found = FeatureLoss(make_extractor(features), model.to_samples)
    _try(found, shape, sample_shape, where)
    return found


def _try(loss: FeatureLoss, inner: tuple[int, ...], shape: tuple[int, ...], where: torch.device) -> None:
    """Refuse features of another shape, and those whose differences do not shrink with the step."""
    made = loss.extractor
    if made.shape is not None and made.shape != shape:
        raise InputError(f"the features '{made.name}' take samples of shape {made.shape}, and the model makes {shape}")
    g = torch.Generator("cpu").manual_seed(0)
    x, along = (torch.randn(_PROBES, *inner, generator=g, device="cpu").to(where) for _ in range(2))
    x = 0.5 * x
    try:
        base = loss(x).double()
        far, near = ((loss(x + h * along).double() - base) / h for h in (_FAR, _NEAR))
    except SdediffError:
        raise
    except Exception as error:  # of a function of the caller, or a network inside an extractor
        raise InputError(f"the features '{made.name}' fail on samples of the model: {_first_line(error)}") from error
    if base.ndim != 2 or not bool(base.isfinite().all()):
        raise InputError(f"the features '{made.name}' are not finite vectors on samples of shape {shape}")
    size = float(far.norm())
    if size == 0 or not float((far - near).norm()) < 0.5 * size:
        raise InputError(
            f"the features '{made.name}' do not change smoothly with the samples, as features that round them to bytes "
            "or are classes do; tuning needs features with a derivative"
        )


def _first_line(error: Exception) -> Any:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
