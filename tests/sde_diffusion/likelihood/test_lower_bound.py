"""Every term against quadrature on Gaussian data in one dimension, where D is affine and q is normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.likelihood.lower_bound import continuous_elbo, decoder_term, elbo, prior_term, step_term
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow

SDES = [VPSDE(), Flow(), CosineVPSDE(), VESDE(), EDM()]
GRID = torch.linspace(-14, 14, 40001, dtype=torch.float64)  # in standard deviations: the trapezoid rule is exact


def normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def relative_entropy(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) by quadrature of p log(p / q)."""
    x = mean + std * GRID
    p = normal(x, mean, std)
    log_ratio = ((x - other_mean) / other_std) ** 2 / 2 - ((x - mean) / std) ** 2 / 2 + math.log(other_std / std)
    return float(torch.trapezoid(p * log_ratio, x))


def posterior(sde: SDE, x0: float, xt: float, t: float, s: float) -> tuple[float, float]:
    """Mean and standard deviation of q(x_s | x_t, x_0) by Bayes' rule: normalise q(x_t | x_s) q(x_s | x_0)."""
    (at, st), (as_, ss) = ([float(c) for c in sde.marginal(v)] for v in (t, s))
    a, noise = at / as_, math.sqrt(st**2 - (at / as_ * ss) ** 2)
    x = as_ * x0 + ss * GRID
    weight = torch.exp(-(((xt - a * x) / noise) ** 2) / 2 + (((xt - a * x) / noise) ** 2 / 2).min()) * normal(
        x, as_ * x0, ss
    )
    weight = weight / torch.trapezoid(weight, x)
    mean = float(torch.trapezoid(weight * x, x))
    return mean, math.sqrt(float(torch.trapezoid(weight * (x - mean) ** 2, x)))


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_step_is_the_relative_entropy_of_its_posteriors(sde: SDE, variance: str) -> None:
    t, s, x0, denoised, xt = 0.6, 0.45, 0.7, -0.2, 0.9
    mean, std = posterior(sde, x0, xt, t, s)
    model_mean, _ = posterior(sde, denoised, xt, t, s)  # D in the place of x_0
    (at, st), (as_, ss) = ([float(c) for c in sde.marginal(v)] for v in (t, s))
    model_std = std if variance == "small" else math.sqrt(st**2 - (at / as_ * ss) ** 2)
    found = step_term(sde, torch.tensor([[x0]]).double(), torch.tensor([[denoised]]).double(), t, s, variance)
    assert float(found) == pytest.approx(relative_entropy(mean, std, model_mean, model_std), rel=1e-6)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_the_prior_term_is_a_relative_entropy(sde: SDE) -> None:
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    expected = sum(relative_entropy(alpha * x, sigma, 0.0, sde.prior_std()) for x in (0.7, -3.0))
    assert float(prior_term(sde, torch.tensor([[0.7, -3.0]]))) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_decoder_of_levels_is_a_probability() -> None:
    sde, t = VPSDE(), torch.tensor(0.02, dtype=torch.float64)
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None]
    sigma = float(sde.marginal(t)[1])
    for denoised in (-0.3, 0.98, 1.4):
        nats = decoder_term(sde, levels, torch.full_like(levels, denoised), t, bins=17)
        assert torch.exp(-nats).sum() == pytest.approx(1, abs=1e-12)
        x = levels[8] + torch.linspace(-1 / 16, 1 / 16, 2001, dtype=torch.float64)
        assert torch.exp(-nats[8]) == pytest.approx(float(torch.trapezoid(normal(x, denoised, sigma), x)), rel=1e-5)
    far = decoder_term(sde, levels[:1], torch.full((1, 1), 5.0).double(), t, bins=17)  # 100 deviations away
    assert bool(far.isfinite()) and float(far) > 1000


def expected_terms(model: Gaussian, sde: SDE, x0: Tensor, steps: int, variance: str) -> Tensor:
    """-(L_T + sum L_{i-1} + L_0) with every expectation over x_i by Gauss-Hermite quadrature; (B,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)  # exact: D is affine, the terms are quadratic
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    total = prior_term(sde, x0)
    for i in range(1, steps + 1):
        t, s = torch.tensor(i / steps).double(), torch.tensor((i - 1) / steps).double()
        for node, weight in zip(z, w, strict=True):
            xt = sde.perturb(x0, t, node.expand_as(x0))
            denoised = model.denoise(xt, t.expand(len(x0)))
            term = decoder_term(sde, x0, denoised, t) if i == 1 else step_term(sde, x0, denoised, t, s, variance)
            total = total + weight * term
    return -total


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_bound_is_the_sum_of_its_terms_by_quadrature(variance: str) -> None:
    sde = VPSDE()
    model = Gaussian(torch.tensor([0.2]), torch.tensor([0.4]), sde=sde)
    x = torch.tensor([[0.3], [-1.0]]).double()
    found = elbo(model, x, steps=5, draws=150, variance=variance, seed=3)
    expected = expected_terms(model, sde, x, 5, variance)
    assert ((found.nats - expected).abs() < 4 * found.standard_error).all() and (found.standard_error < 0.3).all()
    assert torch.allclose(found.nats, -(found.prior + found.steps.sum(0) + found.decoder))
    assert found.nfe == 750 and found.times.tolist() == pytest.approx([i / 5 for i in range(2, 6)])


@pytest.mark.parametrize("sde", [VPSDE(), Flow(), CosineVPSDE()], ids=lambda s: type(s).__name__)
def test_the_bound_lies_below_the_log_likelihood_and_gets_tight(sde: SDE) -> None:
    """Over the data, E log p(x_0), by quadrature over x_0 too: no Monte Carlo. The gap falls like 1 / T."""
    mean, std = 0.2, math.sqrt(0.4)
    model = Gaussian(torch.tensor([mean]), torch.tensor([std**2]), sde=sde)
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    x, w = torch.tensor(mean + std * nodes)[:, None], torch.tensor(weights / weights.sum())
    entropy = math.log(std * math.sqrt(2 * math.pi * math.e))
    gaps = [-entropy - float(w @ expected_terms(model, sde, x, steps, "large")) for steps in (10, 20, 40)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.6 * gaps[1] < 0.36 * gaps[0]


def test_the_small_variance_leaves_half_of_eulers_constant() -> None:
    """Where sigma^2 is proportional to t: constant beta, with so little noise that the data stay flat over a step."""
    sde = VPSDE(1e-4, 1e-4)
    model = Gaussian(torch.zeros(1), torch.ones(1), sde=sde)
    gaps = []
    nodes, weights = np.polynomial.hermite_e.hermegauss(2)  # everything is quadratic
    x, w = torch.tensor(nodes)[:, None], torch.tensor(weights / weights.sum())
    for variance in ("small", "large"):
        gaps.append(float(-(w @ expected_terms(model, sde, x, 60, variance))))
    assert gaps[0] - gaps[1] == pytest.approx(0.5 * (0.5772157 - 1 / 120), abs=1e-3)


@pytest.mark.parametrize("sde", [VPSDE(), Flow(), EDM()], ids=lambda s: type(s).__name__)
def test_the_continuous_bound_lies_below_and_is_tight(sde: SDE) -> None:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.0, -1.0]]).double()
    model = GaussianMixture(means, 0.3, sde=sde)
    x = model.draw(600)
    found = continuous_elbo(model, x, steps=60, draws=2, seed=1)
    gap = model.log_prob(x, torch.zeros(600).double()) - found.nats
    error = float(gap.std()) / 600**0.5
    assert -3 * error < float(gap.mean()) < 3 * error + 0.01 and error < 0.1
    assert found.steps.shape == (60, 600) and bool((found.times.diff() > 0).all())


def test_draws_depend_on_the_sample_and_not_on_the_batch() -> None:
    model = GaussianMixture(torch.tensor([[1.0], [-1.0]]).double(), 0.3, sde=Flow())
    x = model.draw(3)
    for bound in (elbo, continuous_elbo):
        together, first = bound(model, x, steps=5, draws=2), bound(model, x[:1], steps=5, draws=2)
        assert torch.allclose(together.nats[:1], first.nats)
        assert not torch.allclose(bound(model, x, steps=5, draws=2, seed=1).nats, together.nats)
        assert bool(bound(model, x, steps=5).standard_error.isnan().all())


def test_bad_input_is_named() -> None:
    model = Gaussian(torch.zeros(1), torch.ones(1), sde=Flow())
    x = torch.zeros(1, 1).double()
    with pytest.raises(ValueError, match="at least 2 steps and 1 draw; got 1 steps"):
        elbo(model, x, steps=1)
    with pytest.raises(ValueError, match="did you mean 'large'"):
        elbo(model, x, steps=3, variance="larg")
    with pytest.raises(ValueError, match=r"in \(0, 1\); got 0"):
        continuous_elbo(model, x, t_min=0.0)
    with pytest.raises(ValueError, match="1 of 1 values of x are not finite"):
        elbo(model, x * torch.nan, steps=3)
