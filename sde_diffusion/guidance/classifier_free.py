r"""Guidance: a model pushed towards a condition, itself a score model.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) evaluates one network with the condition and without it, and

    eps = eps_u + w (eps_c - eps_u):      w = 1 is the conditional model, w = 0 the unconditional one.

Every quantity a network may output is affine in eps with coefficients of t alone, so the same line holds for
outputs of any kind. Within a guidance interval w acts, outside it is 1 (Kynkaanniemi et al. 2024, eq. 5).

Classifier guidance (Dhariwal & Nichol 2021, algorithm 1) adds the gradient of a noise-aware classifier to the
score of an unconditional model:  score + w grad_x log p(y | x, t).

To be guided later, a network is trained with conditions that are dropped now and then (``drop``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError

Null = float | Tensor


def null_of(network: Any, name: str) -> float:
    """The value of a condition that means none: the label ``classes``; NaN for everything else.

    Raises:
        ValueError: a label for a network without classes.

    >>> from sde_diffusion.networks import build
    >>> null_of(build("mlp", shape=(2,), classes=10), "label")
    10
    """
    if name != "label":
        return float("nan")
    classes = getattr(network, "settings", {}).get("classes")
    if classes is None:
        raise InputError(
            "which label means 'no class' is known of networks built with classes=...; say it for others: "
            "null={'label': 10}"
        )
    return int(classes)


def drop(value: Tensor, null: Null, dropped: Tensor) -> Tensor:
    """A condition (B, ...) whose rows in ``dropped`` (B,) bool are replaced by the null value.

    >>> drop(torch.tensor([4, 5]), 10, torch.tensor([True, False]))
    tensor([10,  5])
    """
    rows = dropped.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
    return torch.where(rows, torch.as_tensor(null, dtype=value.dtype, device=value.device), value)


class Guided(ScoreModel):
    """Classifier-free guidance: one call of twice the batch, so a cost of 2 evaluations.

    Args:
        model: a conditional model that was trained with dropped conditions.
        scale: w.
        null: what means no condition, by the name of the condition; ``null_of`` the network where absent.
        interval: (low, high): w acts where low < rho <= high, rho = sigma / alpha; everywhere when None.

    Raises:
        ValueError: a scale that is not finite, an empty interval.

    >>> from sde_diffusion.sde import VPSDE
    >>> network = lambda x, t, label: label[:, None].to(x.dtype).expand_as(x)
    >>> model = Guided(ScoreModel(network, VPSDE()), scale=3.0, null={"label": 0})
    >>> model.noise(torch.zeros(2, 1), torch.tensor([0.5, 0.5]), label=torch.tensor([1, 2])).tolist(), model.cost
    ([[3.0], [6.0]], 2)
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: float,
        null: Mapping[str, Null] | None = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        if not torch.isfinite(torch.tensor(scale)):
            raise InputError(f"the guidance scale is a finite number; got {scale}")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise InputError(f"a guidance interval is (low, high) in sigma / alpha, 0 <= low < high; got {interval}")
        super().__init__(model.network, model.sde, model.predicts, model.shape, model.sigma_data, 2 * model.cost)
        self.model = model
        self.scale = scale
        self.null = dict(null or {})
        self.interval = interval

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """The guided output; a learned variance is that of the conditional model.

        Raises:
            ValueError: no condition to be guided by.
        """
        given = {name: value for name, value in condition.items() if value is not None}
        if not given:
            raise InputError("a guided model needs a condition, such as label=torch.full((n,), 3)")
        both = {}
        for name, value in given.items():
            null = self.null[name] if name in self.null else null_of(self.network, name)
            none = drop(value, null, torch.ones(len(value), dtype=torch.bool))
            both[name] = torch.cat([value, none])
        output, extra = self.model.outputs(torch.cat([x, x]), torch.cat([t, t]), **both)
        conditional, free = output.chunk(2)
        guided = torch.lerp(free, conditional, per_sample(self.weight(t), x).to(output.dtype))
        return guided, None if extra is None else extra.chunk(2)[0]

    def weight(self, t: Tensor) -> Tensor:
        """W at times t (B,): the scale within the interval and 1 outside."""
        alpha, sigma = self.sde.marginal(t)
        scale = torch.full_like(alpha, self.scale)
        if self.interval is None:
            return scale
        low, high = self.interval
        rho = sigma / alpha  # infinite where alpha = 0
        return torch.where((rho > low) & (rho <= high), scale, torch.ones_like(alpha))
