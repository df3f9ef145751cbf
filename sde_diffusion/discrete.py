r"""Networks trained on discrete time steps, and the chain they were trained for.

A DDPM network is told the index i - 1 in 0, ..., T - 1 of a step instead of a time. ``DiscreteModel`` translates:
on times i/T it is that network exactly, and every solver runs on it. Between two steps the network is either
asked at the nearest one or, if its embedding allows, at a fraction.

``ancestral`` walks the chain x_T, ..., x_0 itself: with the small variance beta~ or the large one beta (Ho et al.
2020, section 3.2), or with the one the network learned. On a subset of the steps the same formulas hold with the
beta of the longer steps (Nichol & Dhariwal 2021, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import DDPM
from sde_diffusion.sde.process import per_sample
from sde_diffusion.variance import first_variance, learned_log_variance, posterior
from solvers.errors import choose
from solvers.noise import INDEPENDENT, as_seeds, standard_normal

VARIANCES = ("small", "large", "learned")


class DiscreteModel(ScoreModel):
    """A network that is called with the index of a DDPM step, as a score model in continuous time.

    Args:
        network: (x, index) -> like x, or with twice the channels; index is (B,) int64 in 0, ..., T - 1.
        sde: the process it was trained on.
        predicts: what it outputs.
        shape: shape of one sample.
        rounded: ask at the nearest step; False passes a fraction, in the dtype of x.

    >>> seen = []
    >>> model = DiscreteModel(lambda x, i: seen.append(i) or torch.zeros_like(x))
    >>> _ = model.noise(torch.zeros(3, 2), torch.tensor([1.0, 0.5, 0.001], dtype=torch.float64))
    >>> seen
    [tensor([999, 499,   0])]
    """

    def __init__(
        self,
        network: Any,
        sde: DDPM | None = None,
        predicts: str = "noise",
        shape: tuple[int, ...] | None = None,
        rounded: bool = True,
    ) -> None:
        sde = DDPM() if sde is None else sde
        if not isinstance(sde, DDPM):
            raise TypeError(f"a network of discrete steps needs a DDPM process; got {type(sde).__name__}")
        if predicts == "edm":
            raise ValueError("an 'edm' network is told c_noise, not the index of a step; use ScoreModel")
        super().__init__(network, sde, predicts, shape)
        self.rounded = rounded
        self.steps = sde

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """X, and the index of each time."""
        index = self.steps.timestep(t)
        return x, index.round().long() if self.rounded else index.to(x.dtype)


def ancestral(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int | None = None,
    variance: str = "small",
    seeds: Iterable[int] | Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """Walk the reverse chain from x_T to x_0.

    Args:
        model: on a DDPM process.
        x: x_T, (B, ...), standard normal: ``model.sde.prior``.
        steps: a subset of so many evenly spaced steps; all T when None.
        variance: "small", "large" or "learned".
        seeds: one integer per sample, 0 to B - 1 when absent.
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
        raise ValueError(f"the chain has the steps of a DDPM process; this model is on {type(sde).__name__}")
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
            return mean
        if first is None:
            std = torch.sqrt(q.small if variance == "small" else q.large)
        elif extra is None:
            raise ValueError("the network has no second half of channels, so it learned no variance; use 'small'")
        else:
            std = torch.exp(learned_log_variance(q, first, extra) / 2)
        noise = standard_normal(keys, x.shape[1:], INDEPENDENT, k).to(x)
        x = mean + per_sample(std, x) * noise if std.ndim == 0 else mean + std * noise
    return x
