r"""Ancestral sampling along the discrete chain x_T, ..., x_0 of DDPM.

A step has the small variance beta~ or the large one beta (Ho et al. 2020, section 3.2), or the variance that the
network learned. On a subset of the steps the same formulas hold with the beta of the longer steps (Nichol &
Dhariwal 2021, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM
from sde_diffusion.sde.base import per_sample
from sde_diffusion.sde.step_posterior import first_variance, learned_log_variance, posterior
from solvers.errors import InputError, choose
from solvers.noise import INDEPENDENT, as_seeds, standard_normal

VARIANCES = ("small", "large", "learned")


def ancestral(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int | None = None,
    variance: str = "small",
    seeds: Iterable[int] | Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """Walk the reverse chain from x_T to x_0, in units of the data.

    Args:
        model: on a DDPM process.
        x: x_T, (B, ...), standard normal: ``model.sde.prior``.
        steps: number of evenly spaced steps; all T if None.
        variance: "small", "large" or "learned".
        seeds: one integer per sample, 0 to B - 1 by default.
        condition: passed on to the network.

    Raises:
        ValueError: another process, an unknown variance, or one that the network did not learn.

    >>> sde = DDPM(steps=10, schedule="cosine")
    >>> dirac = ScoreModel(lambda x, t: torch.full_like(x, 3.0), sde, predicts="data")
    >>> ancestral(dirac, sde.prior((2, 1))).flatten().tolist()
    [3.0, 3.0]
    """
    sde = model.sde
    if not isinstance(sde, DDPM):
        raise InputError(f"the chain has the steps of a DDPM process; this model is on {type(sde).__name__}")
    choose(variance, dict.fromkeys(VARIANCES), "variance")
    keys = as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    times = sde.grid(sde.steps if steps is None else steps)
    first = first_variance(sde) if variance == "learned" else None
    for k, (t, s) in enumerate(pairwise(times)):
        at = torch.full((len(x),), float(t), dtype=torch.float64, device=x.device)
        output, extra = model.outputs(x, at, **condition)
        q = posterior(sde, t, s)
        x0 = model.denoised_from(output, x, at)
        mean = q.from_data * x0 + q.from_x * x
        if float(s) == 0:
            return model.units.to_data(mean)
        if first is None:
            std = torch.sqrt(q.small if variance == "small" else q.large)
        elif extra is None:
            raise InputError("the network has no second half of channels, so it learned no variance; use 'small'")
        else:
            std = torch.exp(learned_log_variance(q, first, extra) / 2)
        noise = standard_normal(keys, x.shape[1:], INDEPENDENT, k).to(x)
        x = mean + per_sample(std, x) * noise if std.ndim == 0 else mean + std * noise
    return x
