"""Exact models against quadrature, automatic differentiation and each other."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.models.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.sde import VESDE, VPSDE, CosineVPSDE

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.0, -1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_mixture_score_is_the_gradient_of_its_log_density() -> None:
    exact = GaussianMixture(MEANS, 0.25, WEIGHTS, sde=VPSDE())
    t = torch.tensor([0.01, 0.2, 0.5, 0.99], dtype=torch.float64)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_prob(x, t).sum(), x)
    torch.testing.assert_close(exact.score(x, t), gradient, rtol=1e-10, atol=1e-10)


def test_mixture_density_integrates_to_one() -> None:
    exact = GaussianMixture(MEANS, 0.25, WEIGHTS, sde=VESDE())
    line = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    for t in (0.0, 0.3, 0.55):
        p = exact.log_prob(x, torch.full((len(x),), t, dtype=torch.float64)).exp()
        assert float(p.sum()) * 0.02**2 == pytest.approx(1, abs=1e-9)


def test_mixture_posterior_mean_by_quadrature() -> None:
    """E[x_0 | x_t] = int x_0 p(x_0) N(x_t; alpha x_0, sigma^2) / int p(x_0) N(...), in one dimension."""
    means = torch.tensor([[-1.0], [0.4]], dtype=torch.float64)
    sde = VPSDE()
    exact = GaussianMixture(means, 0.3, torch.tensor([0.7, 0.3], dtype=torch.float64), sde=sde)
    x0 = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    prior = sum(w * torch.exp(-((x0 - m) ** 2) / (2 * 0.09)) for w, m in zip((0.7, 0.3), (-1.0, 0.4), strict=True))
    for t, x in [(0.05, -0.3), (0.4, 0.1), (0.9, 1.5)]:
        alpha, sigma = (float(c) for c in sde(t)[:2])
        w = prior * torch.exp(-((x - alpha * x0) ** 2) / (2 * sigma**2))
        got = exact.denoise(torch.tensor([[x]], dtype=torch.float64), torch.tensor([t], dtype=torch.float64))
        assert float(got) == pytest.approx(float((w * x0).sum() / w.sum()), rel=1e-9)


def test_draws_follow_the_density() -> None:
    exact = GaussianMixture(MEANS, 0.25, WEIGHTS, sde=VPSDE())
    n = 100_000
    x = exact.draw(n, seed=3)
    mean = WEIGHTS @ MEANS
    second = MEANS.T @ (WEIGHTS[:, None] * MEANS) - mean[:, None] * mean + 0.25**2 * torch.eye(2, dtype=torch.float64)
    assert float((x.mean(0) - mean).abs().max()) < 4 * float(second.diag().max()) ** 0.5 / n**0.5
    torch.testing.assert_close(x.T.cov(), second, rtol=0, atol=4 * 2**0.5 * float(second.max()) / n**0.5)
    assert torch.equal(x[:10], exact.draw(n, seed=3)[:10])


def test_one_component_is_the_gaussian_model() -> None:
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    mixture = GaussianMixture(mean[None], 0.7, sde=CosineVPSDE())
    gaussian = Gaussian(mean, torch.full((3,), 0.49, dtype=torch.float64), sde=CosineVPSDE())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([1e-4, 0.1, 0.4, 0.7, 0.99, 1.0], dtype=torch.float64)
    torch.testing.assert_close(mixture.denoise(x, t), gaussian.denoise(x, t), rtol=1e-10, atol=1e-12)


def test_gaussian_posterior_by_conditioning_with_full_covariance() -> None:
    a = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cov, mean = a @ a.T, torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    sde = VPSDE()
    exact = Gaussian(mean, cov, sde=sde)
    x = torch.tensor([[0.3, -0.4, 1.1]], dtype=torch.float64)
    for t in (0.01, 0.3, 0.9):
        alpha, sigma = (float(c) for c in sde(t)[:2])
        marginal = alpha**2 * cov + sigma**2 * torch.eye(3, dtype=torch.float64)
        expected = mean + alpha * cov @ torch.linalg.solve(marginal, x[0] - alpha * mean)
        got = exact.denoise(x, torch.tensor([t], dtype=torch.float64))[0]
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            exact.moments(torch.tensor(t, dtype=torch.float64))[1], marginal, rtol=1e-10, atol=1e-10
        )


def test_gaussian_flow_carries_the_marginal() -> None:
    cov = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    exact = Gaussian(torch.tensor([1.0, -1.0]), cov, sde=VPSDE())
    mean1, cov1 = exact.moments(torch.tensor(1.0))
    basis = torch.linalg.cholesky(cov1)
    points = torch.cat([mean1[None], mean1 + basis.T])  # the map is affine: its effect on these decides all
    moved = exact.flow(points, 1.0, 0.0)
    torch.testing.assert_close(moved[0], torch.tensor([1.0, -1.0], dtype=torch.float64))
    jacobian = (moved[1:] - moved[0]).T
    torch.testing.assert_close(jacobian @ jacobian.T, cov, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(exact.flow(moved, 0.0, 1.0), points, rtol=1e-10, atol=1e-10)


def test_empirical_data_is_the_softmax_over_the_points() -> None:
    data = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sde = VPSDE()
    ideal = EmpiricalData(data, sde=sde)
    x, t = data[:4] * 0.9, torch.full((4,), 0.2, dtype=torch.float64)
    alpha, sigma = (float(c) for c in sde(0.2)[:2])
    distance = ((x[:, None] - alpha * data) ** 2).flatten(2).sum(2)
    r = torch.softmax(-distance / (2 * sigma**2), dim=1)
    torch.testing.assert_close(ideal.denoise(x, t), torch.einsum("bk,kij->bij", r, data), rtol=1e-10, atol=1e-12)


def test_bad_input_is_refused() -> None:
    sde = VPSDE()
    for make, message in [
        (lambda: GaussianMixture(torch.zeros(3), 0.1, sde=sde), "means"),
        (lambda: GaussianMixture(torch.full((2, 2), math.nan), 0.1, sde=sde), "finite"),
        (lambda: GaussianMixture(torch.zeros(2, 2), -1.0, sde=sde), "std"),
        (lambda: GaussianMixture(torch.zeros(2, 2), 0.1, torch.tensor([1.0, 0.0]), sde=sde), "weights"),
        (lambda: Gaussian(torch.zeros(2), torch.zeros(3, 3), sde=sde), "covariance"),
        (lambda: Gaussian(torch.zeros(2), -torch.eye(2), sde=sde), "negative"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), sde=sde), "symmetric"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
