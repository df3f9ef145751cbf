r"""A classifier of noisy samples, p(y | x_t, t), for classifier guidance (Dhariwal & Nichol 2021, section 4).

It is trained on x_t = alpha x_0 + sigma eps with the labels of x_0, at all times t, by cross-entropy. At t = 1 it can
say no more than the frequencies of the classes. With log p(y | x_t, t) exact, score + grad log p(y | x_t, t) is the
score of the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.normalization import Normalization
from sde_diffusion.models.parametrization import WithoutScore
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import SDE
from solvers.errors import InputError

CLASS = "class"


@dataclass(frozen=True)
class ClassPrediction(WithoutScore):
    """The output is the class, from which x_0 cannot be found."""

    name = CLASS
    refusal = (
        "a classifier of noisy samples is no score model: it predicts the class and not x_0; give it with one, "
        "--classifier RUN (ClassifierGuided(model, classifier.log_prob, scale))"
    )


class NoisyClassifier(ScoreModel):
    """The classifier p(y | x_t, t) of a network with logits.

    It is described, trained and stored as a score model is, and refuses to be used as one.

    Args:
        network: (x, t) -> logits (B, classes).
        sde: the forward process.
        shape: shape of one sample.
        normalization: units of the data; a model that it guides has the same.

    >>> from sde_diffusion.networks.classifier import Classifier
    >>> from sde_diffusion.sde import VPSDE
    >>> new = NoisyClassifier(Classifier((2,), classes=4), VPSDE())
    >>> new.log_prob(torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([3])).exp().detach()
    tensor([0.2500])
    """

    def __init__(
        self,
        network: Any,
        sde: SDE,
        shape: tuple[int, ...] | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(network, sde, ClassPrediction(), shape, normalization=normalization)

    @property
    def classes(self) -> int | None:
        """The number of classes, if the network says so."""
        return (getattr(self.network, "settings", None) or {}).get("classes")

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of x (B, ...) at times t (B,)."""
        out: Tensor = self.network(*self._cast(x, t.to(x.dtype)))
        return out.to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Log p(y | x_t, t), (B,), of classes y (B,) int64.

        Raises:
            ValueError: classes that are not one for each sample.
        """
        if y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise InputError(f"expected one class per sample, ({len(x)},) int64; got {y.dtype} of {tuple(y.shape)}")
        return self.logits(x, t).log_softmax(1).gather(1, y.to(x.device)[:, None])[:, 0]

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Refused: a classifier does not predict x_0."""
        ClassPrediction().refuse()

    forward = denoise
