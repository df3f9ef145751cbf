"""The default against the best of UniPC and DPM++(2M) on networks of random features and on points."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDM, SDE, VPSDE, EmpiricalData, Flow, ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import solve

STANDARD = [(solver, grid) for solver in ("unipc", "dpm++2m") for grid in (None, "quadratic", "karras")]


class RandomFeatures(torch.nn.Module):
    """A perceptron of one random layer with the preconditioning of Karras et al. 2022, d = 0.5."""

    def __init__(self, sde: SDE, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        d, width, self.sde = 4 + 4 * seed, 48, sde
        self.first = torch.randn(d + 2, width, generator=g, dtype=torch.float64)
        self.first[:d] *= (0.5 + 0.2 * seed) / math.sqrt(d)
        self.second = torch.randn(width, d, generator=g, dtype=torch.float64) / math.sqrt(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:, None] for c in self.sde.marginal(t))
        n = torch.sqrt(sigma**2 + 0.25 * alpha**2)
        log = torch.log(sigma / n).clamp_min(-7)
        hidden = torch.tanh(torch.cat([x / n, log, (2 * log).sin()], 1) @ self.first)
        return 0.25 * alpha / n**2 * x + 0.5 * sigma / n * (hidden @ self.second)


def random_features(sde: SDE, seed: int) -> ScoreModel:
    return ScoreModel(RandomFeatures(sde, seed), sde, "data", (4 + 4 * seed,))


def points(sde: SDE, seed: int) -> ScoreModel:
    g = torch.Generator().manual_seed(seed)
    return EmpiricalData(2 * torch.rand(1 + 6 * seed, 3, generator=g, dtype=torch.float64) - 1, sde=sde)


MODELS: dict[str, tuple[Callable[[SDE, int], ScoreModel], int]] = {
    "random features": (random_features, 8),
    "points": (points, 5),
}


def ratios(kind: str, nfe: int) -> list[float]:
    """Error over the least of the standard pairs, by model."""
    make, n = MODELS[kind]
    out = []
    for seed in range(n):
        sde = (VPSDE(), EDM(), Flow())[seed % 3]
        model = make(sde, seed).eval()
        x1 = sde.prior((16, *model.shape), seeds=range(16), dtype=torch.float64)
        truth, _ = converged(model, x1, steps=300)
        ode = sde.probability_flow(model)
        error = {
            pair: float(rms(solve(ode, x1, solver=pair[0], nfe=nfe, grid=pair[1]).x - truth).mean())
            for pair in [("pf-ode", None), *STANDARD]
        }
        own = error.pop(("pf-ode", None))
        # Below a thousandth of the data both are exact for every purpose.
        out.append(own / max(min(error.values()), 1e-3 * float(truth.std())))
    return out


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "nfe"),
    [("random features", 5), ("random features", 8), ("random features", 20), ("points", 5), ("points", 20)],
)
def test_the_default_has_a_floor(kind: str, nfe: int) -> None:
    assert max(ratios(kind, nfe)) < 1.1
