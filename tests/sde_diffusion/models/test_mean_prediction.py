"""The prediction of mu~, the mean of DDPM's posterior, against the posterior itself and other parametrizations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import DDPM, EDM, VPSDE, Flow, GaussianMixture, ScoreModel, sample
from sde_diffusion.models.parametrization import MeanPrediction
from sde_diffusion.sde import SDE
from sde_diffusion.sde.step_posterior import posterior

MEANS = torch.tensor([[-1.0], [1.0]]).double()


@pytest.mark.parametrize("t", [0.001, 0.02, 0.5, 1.0])
def test_the_target_is_the_mean_of_the_posterior_of_ddpm(t: float) -> None:
    sde, x0, eps = DDPM(1000), torch.randn(3, 1).double(), torch.randn(3, 1).double()
    alpha, sigma = sde.marginal(torch.tensor(t))
    q = posterior(sde, torch.tensor(t).double(), torch.tensor(t - 0.001).double().clamp_min(0))
    expected = q.from_data * x0 + q.from_x * (alpha * x0 + sigma * eps)
    found = MeanPrediction().target(sde, x0, eps, torch.full((3,), t))
    assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("sde", [DDPM(1000), VPSDE(), Flow(), EDM(20.0)], ids=lambda s: type(s).__name__)
def test_a_network_of_mu_is_the_model_of_its_x_0(sde: SDE) -> None:
    exact, kind = GaussianMixture(MEANS, 0.3, sde=sde), MeanPrediction()

    def network(x: Tensor, t: Tensor) -> Tensor:
        p, q = kind.affine(sde, t)
        return (exact.denoise(x, t) - p[:, None] * x) / q[:, None]

    model = ScoreModel(network, sde, predicts="mean", shape=(1,))
    t = torch.linspace(0.002, 1, 7).double()
    x = torch.linspace(-1, 1, 7).double()[:, None] * sde.prior_std()
    assert torch.allclose(model.denoise(x, t), exact.denoise(x, t), atol=1e-9)
    assert torch.allclose(sample(model, 5, nfe=20), sample(exact, 5, nfe=20), atol=1e-3)
    x0, eps = torch.randn(7, 1).double(), torch.randn(7, 1).double()
    alpha, sigma = (c[:, None] for c in sde.marginal(t))
    p, q = (c[:, None] for c in kind.affine(sde, t))
    assert torch.allclose(p * (alpha * x0 + sigma * eps) + q * kind.target(sde, x0, eps, t), x0, atol=1e-9)


def test_bad_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1 step or more"):
        MeanPrediction(steps=0)
