"""The loss: its minimum on exact models, its gradient, and that parametrizations do not matter."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.models.score_model import PREDICTS, ScoreModel
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.losses import LossModule, denoising_loss
from sde_diffusion.training.time_sampling import stratified

PATHS = [VPSDE(), SubVPSDE(), VESDE(sigma_max=5.0), EDM(sigma_max=5.0), Flow(), CosineVPSDE()]


BY_HAND = ["simple", "likelihood"]  # test_weights has the others


def monte_carlo(model: GaussianMixture, weight: str, t_min: float, batches: int = 200) -> tuple[float, float]:
    """The loss and its standard error from independent batches."""
    generator = torch.Generator().manual_seed(0)
    means = []
    for k in range(batches):
        x0 = model.draw(256, seed=k)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        t = stratified(256, t_min, generator)
        means.append(denoising_loss(model, x0, t, eps, weight).double().mean())
    loss = torch.stack(means)
    return float(loss.mean()), float(loss.std() / math.sqrt(batches))


def w(name: str, sde: SDE, t: float) -> float:
    """The weights by hand: g^2 from f = alpha'/alpha by central differences."""
    sigma = float(sde(t).sigma)
    if name == "simple":
        return sigma**2
    h = 1e-6 * t
    up, down = sde(t + h), sde(t - h)
    f = float(up.alpha.log() - down.alpha.log()) / (2 * h)
    return float(up.sigma**2 - down.sigma**2) / (2 * h) - 2 * f * sigma**2


@pytest.mark.parametrize("weight", BY_HAND)
@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
def test_the_loss_of_the_exact_gaussian_model_is_the_posterior_variance(sde: SDE, weight: str) -> None:
    # eps given x_t has variance alpha^2 s^2 / (sigma^2 + alpha^2 s^2) for data N(0, s^2 I).
    s, t_min = 0.6, 0.02
    exact = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), std=s, sde=sde)

    def density(t: float) -> float:
        alpha, sigma = (float(c) for c in sde(t)[:2])
        return w(weight, sde, t) / sigma**2 * (alpha * s) ** 2 / (sigma**2 + (alpha * s) ** 2)

    # Short of 1, where g is infinite on paths that end in alpha = 0 and the integrand is 0.
    minimum = quad(density, t_min, 1 - 1e-5, epsrel=1e-7, limit=200)[0] / (1 - t_min)
    loss, error = monte_carlo(exact, weight, t_min)
    assert abs(loss - minimum) < 4 * error
    assert error < 0.02 * minimum


def test_the_loss_of_the_exact_mixture_is_the_posterior_variance_by_brute_force() -> None:
    s, sde, t_min = 0.3, VPSDE(), 1e-5
    means = torch.tensor([[-1.0], [0.4]], dtype=torch.float64)
    exact = GaussianMixture(means, std=s, weights=torch.tensor([0.3, 0.7]), sde=sde)
    # Bayes on a grid: p(x_0) p(x_t | x_0) for every pair, then the variance of x_0 given x_t.
    x0 = torch.linspace(-3, 2.5, 801, dtype=torch.float64)
    x = torch.linspace(-5, 5, 801, dtype=torch.float64)
    prior = 0.3 * torch.exp(-(((x0 + 1) / s) ** 2) / 2) + 0.7 * torch.exp(-(((x0 - 0.4) / s) ** 2) / 2)

    def variance_of_noise(t: float) -> float:
        alpha, sigma = (float(c) for c in sde(t)[:2])
        joint = prior * torch.exp(-(((x[:, None] - alpha * x0) / sigma) ** 2) / 2)
        p = joint.sum(1)
        mean = (joint @ x0) / p.clamp_min(1e-300)
        var = (joint @ x0**2) / p.clamp_min(1e-300) - mean**2
        return float((p * var).sum() / p.sum()) * (alpha / sigma) ** 2

    # Near t = 0 the grid is too coarse, and noise cannot be separated from data: variance 1.
    nodes = 0.02 + 0.98 * (torch.arange(48) + 0.5) / 48
    minimum = 0.98 * sum(variance_of_noise(float(t)) for t in nodes) / 48
    minimum += quad(lambda t: 1 - float(sde(t).sigma / s) ** 2, 0, 0.02)[0]
    loss, error = monte_carlo(exact, "simple", t_min)
    # The last line of the minimum is first order in sigma^2 / s^2, wrong by at most 1e-4.
    assert abs(loss - minimum) < 4 * error + 2e-4
    assert error < 0.02 * minimum


class Affine(nn.Module):
    """A small network with something to learn: a x + b t + c."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.1, 0.7], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.a * x + self.b * t[:, None] + 0.05


@pytest.mark.parametrize("weight", BY_HAND)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
def test_the_gradient_is_that_of_the_stated_formula(sde: SDE, predicts: str, weight: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 64, 2, generator=generator, dtype=torch.float64)
    t = stratified(64, 1e-3, generator).clamp_max(0.999)
    model = ScoreModel(Affine(), sde, predicts, sigma_data=0.7)
    loss = denoising_loss(model, x0, t, eps, weight).mean()
    ours = torch.autograd.grad(loss, list(model.parameters()))

    alpha, sigma = (c[:, None] for c in sde(t)[:2])
    guess = model.noise(alpha * x0 + sigma * eps, t)
    weights = torch.tensor([w(weight, sde, float(k)) for k in t], dtype=torch.float64)
    formula = (weights[:, None] / sigma**2 * (eps - guess) ** 2).mean()
    expected = torch.autograd.grad(formula, list(model.parameters()))
    assert loss.item() == pytest.approx(formula.item(), rel=1e-4)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("weight", [name for name in LOSS_WEIGHTS if name != "output"])
def test_every_parametrization_of_one_model_has_the_same_loss(weight: str) -> None:
    sde = VPSDE()
    means = torch.tensor([[-1.0, 0.5], [0.8, 1.0]], dtype=torch.float64)
    exact = GaussianMixture(means, std=0.2, sde=sde)
    x0 = exact.draw(200)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype)
    t = torch.logspace(-5, 0, 200, dtype=torch.float64).clamp_max(1)

    def declared(predicts: str) -> ScoreModel:
        def network(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (c[:, None] for c in sde(t)[:2])
            data = exact.denoise(x, t)
            noise = (x - alpha * data) / sigma
            return {
                "data": data,
                "noise": noise,
                "score": -noise / sigma,
                "velocity": alpha * noise - sigma * data,
            }[predicts]

        return ScoreModel(network, sde, predicts)

    reference = denoising_loss(declared("noise"), x0, t, eps, weight)
    for predicts in ("data", "score", "velocity"):
        other = denoising_loss(declared(predicts), x0, t, eps, weight)
        torch.testing.assert_close(other, reference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_weight_output_is_the_plain_error_of_the_output(predicts: str) -> None:
    sde = VPSDE()
    x0, eps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([1e-3, 0.01, 0.1, 0.4, 0.8, 1.0], dtype=torch.float64)
    model = ScoreModel(Affine(), sde, predicts, sigma_data=0.7)
    error = model.output(sde.perturb(x0, t, eps), t) - model.target(x0, eps, t)
    loss = denoising_loss(model, x0, t, eps, "output").double()
    torch.testing.assert_close(loss, error.square().mean(1), rtol=1e-6, atol=0)


def test_the_loss_stays_float32_and_exact_near_the_data() -> None:
    # In float32 throughout: the data network is off by sigma / 10, so eps is off by alpha / 10.
    sde = VPSDE()
    t = torch.full((4,), 1e-5, dtype=torch.float64)
    alpha, sigma = (float(c) for c in sde(1e-5)[:2])
    x0 = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(lambda x, t: x0 + sigma / 10, sde, "data")
    loss = denoising_loss(model, x0, t, torch.ones_like(x0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((4,), (alpha / 10) ** 2), rtol=2e-3, atol=0)


def test_times_are_stratified_uniform_shuffled_and_repeatable() -> None:
    t = stratified(1000, 1e-5, torch.Generator().manual_seed(0))
    cells = ((t - 1e-5) / (1 - 1e-5) * 1000).floor().long()
    assert torch.equal(cells.sort().values, torch.arange(1000))
    assert not torch.equal(cells, torch.arange(1000))
    assert torch.equal(t, stratified(1000, 1e-5, torch.Generator().manual_seed(0)))
    # One time alone is uniform on [t_min, 1): mean and variance within 4 standard errors.
    generator = torch.Generator().manual_seed(1)
    first = torch.stack([stratified(4, 0.2, generator)[0] for _ in range(4000)])
    assert float(first.min()) >= 0.2
    assert float(first.max()) < 1
    spread = 0.8 / math.sqrt(12)
    assert abs(float(first.mean()) - 0.6) < 4 * spread / math.sqrt(4000)
    assert float(first.std()) == pytest.approx(spread, rel=0.04)


def test_unknown_weight_lists_the_choices() -> None:
    model = ScoreModel(Affine(), VPSDE())
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"did you mean 'simple'.*likelihood, .*simple"):
        denoising_loss(model, x, torch.tensor([0.5]), x, "simpel")


def test_a_learned_weight_is_a_part_of_the_loss_and_trained() -> None:
    model = ScoreModel(Affine(), VPSDE(), "velocity")
    loss = LossModule(model, Affine(), "uncertainty")
    assert loss.learned is not None and LossModule(model, Affine(), "simple").learned is None
    own = list(loss.learned.parameters())
    x, t = torch.randn(16, 2), torch.rand(16)
    minimised = loss(x, t, torch.randn(16, 2), torch.ones(16))[1]
    minimised.sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in own[-1:])
    assert {id(p) for p in own} <= {id(p) for p in loss.parameters()}
