"""Samplers of other libraries for the same network, NFE and clamped range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.restoration import NOISE
from sde_diffusion import ScoreModel
from sde_diffusion.guidance import Operator

Method = Callable[[Operator, Tensor, Tensor], Tensor]
"""(A, y, x_1) -> x_0, for a batch."""


def azula_methods(model: ScoreModel, nfe: int) -> dict[str, Method]:
    """azula's posterior samplers as (A, y, x1) -> x0, on the default grid of its DDIM sampler.

    Raises:
        ImportError: azula is not installed.
    """
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.sample import DDIMSampler

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = model.sde.marginal(t.double().clamp_min(1e-3))
        return alpha.float(), sigma.float()

    class Network(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            at = t.double().clamp_min(1e-3).expand(len(x))
            return DiracPosterior(model.denoise(x, at).clamp(-1, 1))  # MMPS is not finite here without it

    def one_by_one(run: Callable[[Tensor, Tensor], Tensor]) -> Method:
        return lambda _, y, x1: torch.cat([run(y[k : k + 1], x1[k : k + 1]) for k in range(len(x1))])

    settings = {"steps": nfe, "silent": True}

    def dps(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        return one_by_one(lambda v, x: DPSSampler(Network(), v, operator, **settings)(x))(operator, y, x1)

    def pgdm(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        return PGDMSampler(Network(), y, operator, operator.pseudo_inverse, eta=1.0, **settings)(x1)

    def mmps(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        denoiser = MMPSDenoiser(
            Network(), y.flatten(1), lambda x: operator(x).flatten(1), lambda u: NOISE**2 * u, "cg", iterations=3
        )
        return DDIMSampler(denoiser, eta=1.0, **settings)(x1)

    return {"azula DPS": dps, "azula PGDM": pgdm, "azula MMPS, 3 iterations": mmps}
