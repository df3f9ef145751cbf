r"""Classifier guidance (Dhariwal & Nichol 2021, algorithm 1): score + w grad_x log p(y | x, t).

The gradient of a noise-aware classifier is added to the score of an unconditional model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError

# alpha / sigma at which the gradient of a classifier stands for its limit at alpha = 0.
_ALPHA = 1e-3


class ClassifierGuided(ScoreModel):
    """Classifier guidance: score + w grad_x log p(y | x, t).

    One evaluation is one pass of the network; those of the classifier, forward and backward, are not counted.

    Args:
        model: an unconditional model; conditions that are not the classifier's are passed on to it.
        log_prob: (x, t, y) -> log p(y | x, t), (B,), differentiable in x.
        scale: w.
        name: name of the classifier's condition.
        shared: whether the model receives that condition as well, because it is conditional itself.

    >>> from sde_diffusion.models.analytic import GaussianMixture
    >>> from sde_diffusion.sde import VPSDE
    >>> model = GaussianMixture(torch.zeros(1, 1), std=1.0, sde=VPSDE())
    >>> pushed = ClassifierGuided(model, lambda x, t, label: 0.5 * x[:, 0], scale=2.0)
    >>> pushed.score(torch.zeros(1, 1), torch.tensor([0.5]), label=torch.tensor([3])).round(decimals=4)
    tensor([[1.]])
    """

    def __init__(
        self,
        model: ScoreModel,
        log_prob: Callable[[Tensor, Tensor, Tensor], Tensor],
        scale: float,
        name: str = "label",
        shared: bool = False,
    ) -> None:
        if not torch.isfinite(torch.tensor(scale, device="cpu")):
            raise InputError(f"the guidance scale is a finite number; got {scale}")
        super().__init__(
            model.network,
            model.sde,
            model.parametrization,
            model.shape,
            model.sigma_data,
            model.cost,
            model.normalization,
        )
        self.model = model
        self.classifier = log_prob
        # Where alpha falls to 0 the gradient does too, and their ratio has a limit: it is taken a little before.
        self._latest = float(self.sde.time(math.log(_ALPHA))) if self._pure_noise_at_1 else 1.0
        self.scale = scale
        self.name = name
        self.shared = shared

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the model."""
        return self.model.arguments(x, t)

    def bind(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The conditions of the model."""
        return self.model.bind(condition)

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """The model's output, moved by what w sigma^2 grad log p / alpha of the denoised sample amounts to.

        Raises:
            ValueError: the classifier's condition is missing.
        """
        if condition.get(self.name) is None:
            raise InputError(f"the classifier needs its condition: {self.name}=...")
        y = condition[self.name] if self.shared else condition.pop(self.name)
        output, extra = self.model.outputs(x, t, **condition)
        _, q = self._affine(t)
        t = t.clamp_max(self._latest)
        alpha, sigma = self.sde.marginal(t)
        # A likelihood needs the derivative of this gradient, the classifier's part of the divergence.
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            at = x if graph else x.detach().requires_grad_()
            gradient = torch.autograd.grad(self.classifier(at, t.to(x.dtype), y).sum(), at, create_graph=graph)[0]
        return output + per_sample(self.scale * sigma**2 / (alpha * q), x) * gradient, extra
