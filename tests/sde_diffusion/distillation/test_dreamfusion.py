"""Score distillation against its closed form on Gaussians."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.distillation import score_distillation
from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE
from solvers.errors import InputError

SDE = VPSDE()


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_the_mean_gradient_is_that_of_the_smoothed_density(time: float) -> None:
    """E_eps (eps_model - eps) = sigma alpha (x - mu) / (alpha^2 s^2 + sigma^2); antithetic noise gives it exactly."""
    mean, variance = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.25, 4.0]).double()
    exact = Gaussian(mean, variance, sde=SDE)
    x = torch.tensor([[0.5, 0.5]]).double().expand(2, -1).clone().requires_grad_()
    eps = torch.randn(1, 2, generator=torch.Generator().manual_seed(0)).double()
    t = torch.full((2,), time, dtype=torch.float64)
    loss = score_distillation(exact, x, t, torch.cat([eps, -eps]), weight=torch.ones_like)
    gradient = torch.autograd.grad(loss.sum(), x)[0].mean(0)
    alpha, sigma = SDE.marginal(time)
    expected = sigma * alpha * (0.5 - mean) / (alpha**2 * variance + sigma**2)
    torch.testing.assert_close(gradient, expected)
    usual = torch.autograd.grad(score_distillation(exact, x, t, torch.cat([eps, -eps])).sum(), x)[0].mean(0)
    torch.testing.assert_close(usual, sigma**2 * expected)


def test_steps_down_the_gradient_find_the_mode() -> None:
    exact = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.04, 0.04]), sde=SDE)
    x = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        eps = torch.randn(16, 2, generator=g)
        t = 0.05 + 0.6 * torch.rand(16, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        torch.autograd.backward(score_distillation(exact, x.expand(16, -1), t, eps).mean())
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([[1.0, -2.0]]), atol=0.15, rtol=0)


def test_the_network_gets_no_gradient() -> None:
    network = build("mlp", shape=(2,), width=8)
    model = ScoreModel(network, SDE, "velocity")
    x = torch.zeros(3, 2, requires_grad=True)
    torch.autograd.backward(score_distillation(model, x, torch.full((3,), 0.5).double(), torch.randn(3, 2)).sum())
    assert x.grad is not None and all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("t", "eps", "message"),
    [
        (torch.tensor([0.0, 0.5]), torch.zeros(2, 2), "lie between 0 and 1"),
        (torch.tensor([0.5]), torch.zeros(2, 2), "expected times of shape"),
        (torch.tensor([0.5, 0.5]), torch.zeros(2, 3), "noise like x"),
    ],
)
def test_other_shapes_and_times_are_refused(t: torch.Tensor, eps: torch.Tensor, message: str) -> None:
    exact = Gaussian(torch.zeros(2), torch.ones(2), sde=SDE)
    with pytest.raises(InputError, match=message):
        score_distillation(exact, torch.zeros(2, 2), t.double(), eps)


def test_the_noise_that_was_added_is_subtracted() -> None:
    # All data at one point m: the noise of x_t is known but for alpha (x - m) / sigma, whatever eps is.
    m, sde = 0.7, VPSDE()
    model = Gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor([1e-9], dtype=torch.float64), sde=sde)
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    eps = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(score_distillation(model, x, t, eps).sum(), x)[0]
    alpha, sigma = sde.marginal(t)
    torch.testing.assert_close(found[:, 0], alpha * sigma * (x.detach()[:, 0] - m), atol=1e-6, rtol=1e-6)
