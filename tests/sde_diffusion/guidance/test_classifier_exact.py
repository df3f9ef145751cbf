"""Classifier guidance with the exact noisy classifier of a mixture is the score of the class, derivatives included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.guidance import ClassifierGuided
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import SDE, VESDE, VPSDE, CosineVPSDE

MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
STD = 0.4


def log_prob(sde: SDE):  # type: ignore[no-untyped-def]
    """Log p(y | x_t, t) of the mixture."""

    def of(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = (value.to(x)[:, None] for value in sde.marginal(t.double()))
        square = (x[:, None] - alpha[:, None] * MEANS.to(x)).square().sum(2)
        terms = WEIGHTS.to(x).log() - square / (2 * ((alpha * STD) ** 2 + sigma**2))
        return terms.log_softmax(1).gather(1, y[:, None])[:, 0]

    return of


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 20.0), CosineVPSDE()], ids=lambda s: type(s).__name__)
def test_at_scale_1_the_score_is_that_of_the_class(sde: SDE) -> None:
    mixture = GaussianMixture(MEANS, std=STD, weights=WEIGHTS, sde=sde)
    guided = ClassifierGuided(mixture, log_prob(sde), 1.0)
    draw = torch.Generator().manual_seed(0)
    for time in (0.01, 0.1, 0.4, 0.8, 0.97):
        t = torch.full((30,), time, dtype=torch.float64)
        y = torch.randint(0, 3, (30,), generator=draw)
        noise = torch.randn(30, 2, dtype=torch.float64, generator=draw)
        x = sde.perturb(MEANS[torch.randint(0, 3, (30,), generator=draw)], t, noise)
        alpha, sigma = (float(value) for value in sde.marginal(time))
        exact = (alpha * MEANS[y] - x) / ((alpha * STD) ** 2 + sigma**2)
        torch.testing.assert_close(guided.score(x, t, label=y), exact, atol=1e-6 / sigma, rtol=1e-6)


def test_the_likelihood_of_the_guided_flow_is_that_of_the_class() -> None:
    mixture = GaussianMixture(MEANS, std=STD, weights=WEIGHTS, sde=VPSDE())
    guided = ClassifierGuided(mixture, log_prob(VPSDE()), 1.0)
    x = MEANS[1] + 0.3 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_likelihood(guided, x, trace="exact", tolerance=1e-6, label=torch.ones(4, dtype=torch.int64))
    alone = log_likelihood(GaussianMixture(MEANS[1:2], std=STD, sde=VPSDE()), x, trace="exact", tolerance=1e-6)
    # The flow of the class alone has its own prior at t = 1, the guided one the standard normal.
    torch.testing.assert_close(found.nats, alone.nats, atol=0.02, rtol=0)
