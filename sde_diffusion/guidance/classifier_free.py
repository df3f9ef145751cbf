r"""Guidance by the difference of two predictions, itself a score model.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) evaluates one network with the condition and without it, and

    eps = eps_u + w (eps_c - eps_u):      w = 1 is the conditional model, w = 0 the unconditional one.

Every quantity a network may output is affine in eps with coefficients of t alone, so the same line holds for
outputs of any kind. Within a guidance interval w acts, outside it is 1 (Kynkaanniemi et al. 2024, eq. 5).

Autoguidance (Karras et al. 2024, eq. 3) takes the second prediction from a weaker model (``guide``) with the same
condition. Other rules than the line above are functions ``combine(conditional, unconditional, x, t)``, such as those of
``guidance.combine``.

To be guided later, a network is trained with conditions that are dropped now and then (``drop``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from solvers.conditions import map_rows
from solvers.errors import InputError, choose

Null = float | Tensor | Mapping[str, Any]
Combine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class WithNull(NamedTuple):
    """A condition and its null, row by row: ``text=WithNull(prompts, negative_prompts)``."""

    value: Any
    null: Any


def null_of(network: Any, name: str) -> float:
    """The value of a condition that means none: the label ``classes``, or NaN in all else, of networks of ``build``.

    Raises:
        ValueError: any other network or condition, whose null nothing says.

    >>> from sde_diffusion.networks import build
    >>> null_of(build("mlp", shape=(2,), classes=10), "label")
    10
    """
    if getattr(network, "needs_null", False) and name != "label":
        raise InputError(f"say what stands for no '{name}', such as an empty prompt: null={{'{name}': ...}}")
    settings = getattr(network, "settings", None) or {}
    if name == "label" and settings.get("classes") is not None:
        return int(settings["classes"])
    if name in ("context", "vector", "image", "tokens", "caption", "code") and settings.get(name) is not None:
        return float("nan")
    if name == "image_noise" and settings.get("image") is not None:
        return 0.0  # the network ignores the level of a missing image
    example = 10 if name == "label" else 0.0
    raise InputError(
        f"which value of '{name}' means 'no condition' is known only of networks built with classes=... or "
        f"context=...; say which one this network was trained with: null={{'{name}': {example}}}"
    )


def drop(value: Tensor, null: Null, dropped: Tensor) -> Tensor:
    """A condition (B, ...) whose rows in ``dropped`` (B,) bool are replaced by the null value.

    Whole numbers become floating point where the null is none of them, such as NaN or 0.5.

    >>> drop(torch.tensor([4, 5]), 10, torch.tensor([True, False]))
    tensor([10,  5])
    >>> drop(torch.tensor([4, 5]), float("nan"), torch.tensor([True, False]))
    tensor([nan, 5.])
    """
    rows = dropped.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
    none = torch.as_tensor(null, device=value.device)
    if not value.dtype.is_floating_point and none.dtype.is_floating_point and not bool((none == none.round()).all()):
        value = value.to(torch.get_default_dtype())
    return torch.where(rows, none.to(value.dtype), value)


class Guided(ScoreModel):
    """Classifier-free guidance: one call of twice the batch, so a cost of 2 evaluations.

    Args:
        model: a conditional model that was trained with dropped conditions; with ``guide`` any model.
        scale: w; leave it out if ``combine`` has a scale.
        null: what means no condition, by the name of the condition; a tensor has one entry, or one for each sample
            (negative prompts). Conditions that it does not name are the same in both halves. Without it every
            condition is replaced by ``null_of`` the network.
        interval: (low, high): guidance acts where low < rho <= high, rho = sigma / alpha, and elsewhere the conditional
            prediction stands; everywhere when None.
        combine: (conditional, unconditional, x, t) -> the guided prediction, instead of the line with w; it receives
            E[x_0 | x_t] twice, or with ``on="output"`` the network's outputs.
        guide: a weaker model on the same process whose prediction takes the place of the unconditional one.
        on: "data" or "output", what ``combine`` acts on.

    Raises:
        ValueError: a scale that is not finite, none at all, an empty interval, a guide on another process or of
            other samples.

    >>> from sde_diffusion.sde import VPSDE
    >>> network = lambda x, t, label: label[:, None].to(x.dtype).expand_as(x)
    >>> model = Guided(ScoreModel(network, VPSDE()), scale=3.0, null={"label": 0})
    >>> model.noise(torch.zeros(2, 1), torch.tensor([0.5, 0.5]), label=torch.tensor([1, 2])).tolist(), model.cost
    ([[3.0], [6.0]], 2)
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: float | None = None,
        null: Mapping[str, Null] | None = None,
        interval: tuple[float, float] | None = None,
        *,
        combine: Combine | None = None,
        guide: ScoreModel | None = None,
        on: str = "data",
    ) -> None:
        if scale is None and combine is None:
            raise InputError("give the guidance scale, such as Guided(model, scale=3.0), or combine=...")
        if scale is not None and combine is not None:
            raise InputError(
                "combine has a scale of its own: leave out scale, as in Guided(model, combine=rescaled(7.5))"
            )
        if scale is not None and not torch.isfinite(torch.tensor(scale, device="cpu")):
            raise InputError(f"the guidance scale is a finite number; got {scale}")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise InputError(f"a guidance interval is (low, high) in sigma / alpha, 0 <= low < high; got {interval}")
        if guide is not None and guide.sde != model.sde:
            raise InputError(f"the guide was made for {guide.sde}, not for {model.sde}; both need one process")
        if guide is not None and None not in (guide.shape, model.shape) and guide.shape != model.shape:
            raise InputError(f"the guide was made for samples of shape {guide.shape}, not {model.shape}")
        if guide is not None and not guide.units.same_as(model.units):
            raise InputError("the guide scales its data otherwise than the model; both need the same normalization")
        choose(on, {"data": 0, "output": 1}, "space of combine")
        cost = model.cost + (model.cost if guide is None else guide.cost)
        super().__init__(
            model.network, model.sde, model.parametrization, model.shape, model.sigma_data, cost, model.normalization
        )
        self.model = model
        self.scale = 1.0 if scale is None else scale
        self.null = dict(null or {})
        self.interval = interval
        self.combine = combine
        self.guide = guide
        self.on = on

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the model."""
        return self.model.arguments(x, t)

    def bind(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The conditions with the nulls that have one entry for each sample beside them."""
        condition = self.model.bind(condition)
        found = dict(condition)
        for name, null in self.null.items():
            value = condition.get(name)
            if not (isinstance(value, Tensor) and isinstance(null, Tensor)):
                continue
            if null.ndim == value.ndim and len(null) == len(value) > 1:
                found[name] = WithNull(value, null)
        return found

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """The guided output; a learned variance is that of the conditional model.

        Raises:
            ValueError: no condition to be guided by, or one whose null is not known.
        """
        given = {name: value for name, value in condition.items() if value is not None}
        if self.guide is not None:
            conditional, extra = self.model.outputs(x, t, **given)
            free = self.output_for(self.guide.denoise(x, t, **given), x, t)
        else:
            conditional, free, extra = self._both(x, t, given)
        if self.combine is None:
            return torch.lerp(free, conditional, per_sample(self.weight(t), x).to(conditional.dtype)), extra
        if self.on == "output":
            guided = self.combine(conditional, free, x, t)
        else:
            pair = (self.denoised_from(conditional, x, t), self.denoised_from(free, x, t))
            guided = self.output_for(self.combine(*pair, x, t), x, t)
        if self.interval is not None:
            guided = torch.where(per_sample(self._acts(t), x).bool(), guided, conditional)
        return guided, extra

    def _both(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The network's output with the condition and without it, from one call; and the learned variance."""
        able = [k for k, value in given.items() if isinstance(value, WithNull) or not self.null or k in self.null]
        if not able:
            names = ", ".join(self.null) or "label"
            raise InputError(f"a guided model needs a condition ({names}), such as label=torch.full((n,), 3)")
        both = {}
        for name, value in given.items():
            if isinstance(value, WithNull):
                value, null = value
            elif name in able:
                null = self.null[name] if self.null else null_of(self.network, name)
            else:
                null = None
            both[name] = _doubled(value, null, len(x))
        output, extra = self.model.outputs(torch.cat([x, x]), torch.cat([t, t]), **both)
        conditional, free = output.chunk(2)
        return conditional, free, None if extra is None else extra.chunk(2)[0]

    def weight(self, t: Tensor) -> Tensor:
        """W at times t (B,): the scale within the interval and 1 outside."""
        acts = self._acts(t)
        return torch.where(acts, self.scale, torch.ones((), dtype=torch.float64, device=acts.device))

    def _acts(self, t: Tensor) -> Tensor:
        """Whether t (B,) lies in the interval."""
        alpha, sigma = self.sde.marginal(t)
        if self.interval is None:
            return torch.ones_like(alpha, dtype=torch.bool)
        low, high = self.interval
        rho = sigma / alpha  # infinite where alpha = 0
        return (rho > low) & (rho <= high)


def _doubled(value: Any, null: Any, batch: int) -> Any:
    """A condition for the two halves of the call: unchanged, and replaced by its null, if any."""
    if isinstance(value, dict):
        nulls = null if isinstance(null, Mapping) else {}
        return {name: _doubled(entry, nulls.get(name), batch) for name, entry in value.items()}
    if null is None:
        return map_rows(value, batch, lambda rows: torch.cat([rows, rows]))
    rows = torch.ones(batch, dtype=torch.bool, device="cpu")
    return map_rows(value, batch, lambda kept: torch.cat([kept, drop(kept, null, rows)]))
