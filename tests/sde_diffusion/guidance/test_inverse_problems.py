"""Exact posteriors of linear observations, and the methods that approximate them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDM, VPSDE, Flow, Gaussian, GaussianMixture, ScoreModel, sample
from sde_diffusion.guidance import (
    DDNM,
    DPS,
    METHODS,
    DiffPIR,
    Mask,
    Matrix,
    MomentMatching,
    PiGDM,
    residual_rms,
    twisted_particles,
)
from sde_diffusion.guidance.finite_steps import step_noise
from sde_diffusion.guidance.observed import Observed
from sde_diffusion.guidance.twisted import _Twisted
from sde_diffusion.models.full_covariance import FullCovarianceMixture
from sde_diffusion.sampling.restoration import restoration_times
from sde_diffusion.sde import SDE
from solvers import SOLVERS
from solvers.errors import InputError

MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.3, 1.2]]).double()
FIRST = Mask(torch.tensor([True, False]))
Y = torch.tensor([[0.4, 0.0]]).double()


def mixture(sde: SDE | None = None) -> GaussianMixture:
    return GaussianMixture(MEANS, std=0.3, sde=sde or VPSDE())


def mode_weights(exact: FullCovarianceMixture, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The share of each component, by its responsibility."""
    error = x.double()[:, None] - exact.means
    square = torch.einsum("bki,ij,bkj->bk", error, torch.linalg.inv(exact.covariance), error)
    share = (exact.weights.log() - square / 2).softmax(1)
    return share.mean(0) if weights is None else (weights[:, None] * share).sum(0)


def test_the_posterior_of_a_mixture_is_bayes_rule_on_a_grid() -> None:
    prior, noise = mixture(), 0.5
    exact = prior.posterior(FIRST, Y, noise)
    u = torch.linspace(-4, 4, 801, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    log = prior.log_prob(x, torch.zeros(len(x), dtype=torch.float64)) - (x[:, 0] - 0.4) ** 2 / (2 * noise**2)
    p = log.softmax(0)
    mean = (p[:, None] * x).sum(0)
    assert torch.allclose((exact.weights[:, None] * exact.means).sum(0), mean, atol=1e-9)
    second = (p[:, None, None] * x[:, :, None] * x[:, None]).sum(0)
    own = exact.covariance + torch.einsum("k,ki,kj->ij", exact.weights, exact.means, exact.means)
    assert torch.allclose(own, second, atol=1e-9)


def test_the_denoiser_of_the_posterior_is_bayes_rule_too() -> None:
    prior, noise = mixture(), 0.5
    exact = prior.posterior(FIRST, Y, noise)
    at, t = torch.tensor([[0.2, 0.7]]).double(), torch.tensor([0.3]).double()
    alpha, sigma = prior.sde.marginal(t)
    u = torch.linspace(-4, 4, 801, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    log = prior.log_prob(x, torch.zeros(len(x), dtype=torch.float64)) - (x[:, 0] - 0.4) ** 2 / (2 * noise**2)
    log = log - (at - alpha * x).square().sum(1) / (2 * sigma**2)
    assert torch.allclose(exact.denoise(at, t)[0], (log.softmax(0)[:, None] * x).sum(0), atol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_on_gaussians_moment_matching_is_exact_and_pigdm_where_the_covariance_is_a_multiple_of_one(sde: SDE) -> None:
    matrix = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.0, 1.0, -1.0, 0.3]]).double()
    y, noise = torch.tensor([[0.7, -0.4]]).double(), 0.3
    root = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.8, 0, 0], [0.1, 0.2, 0.6, 0], [0, 0.3, 0, 0.5]]).double()
    any_covariance = Gaussian(torch.tensor([0.5, 0.0, -0.3, 0.1]), root @ root.T, sde=sde)
    x = sde.prior((3, 4), dtype=torch.float64)
    moment = MomentMatching(any_covariance, Matrix(matrix), y, noise, iterations=2)
    exact = any_covariance.posterior(Matrix(matrix), y, noise)
    unit = Gaussian(torch.tensor([0.5, 0.0, -0.3, 0.1]), torch.ones(4), sde=sde)
    pigdm, exact_unit = PiGDM(unit, Matrix(matrix), y, noise), unit.posterior(Matrix(matrix), y, noise)
    for time in (0.9, 0.5, 0.1):
        t = torch.full((3,), time, dtype=torch.float64)
        scale = math.hypot(*(float(c) for c in sde.marginal(time)))
        here = x / sde.prior_std() * scale
        assert torch.allclose(moment.denoise(here, t), exact.denoise(here, t), atol=1e-8)
        assert torch.allclose(pigdm.denoise(here, t), exact_unit.denoise(here, t), atol=1e-8)
        if time == 0.5:
            other = PiGDM(any_covariance, Matrix(matrix), y, noise).denoise(here, t)
            assert not torch.allclose(other, exact.denoise(here, t), atol=1e-3)


def test_one_preconditioned_iteration_is_exact_for_isotropic_gaussians_of_any_size_and_ill_conditioned_a() -> None:
    """The spread is measured from the Jacobian, so the model need not know the standard deviation, here 0.5."""
    matrix = torch.tensor([[1.0, 0.5, 0, 0], [0, 0.1, 0, 0.05], [0, 0, 0.01, 0], [0, 0, 0, 0.003]]).double()
    prior = Gaussian(torch.tensor([0.5, 0.0, -0.3, 0.1]), torch.full((4,), 0.25), sde=VPSDE())
    y, x = torch.tensor([[0.7, -0.1, 0.02, 0.01]]).double(), VPSDE().prior((3, 4), dtype=torch.float64)
    model = MomentMatching(prior, Matrix(matrix), y, 0.01, iterations=1)
    exact = prior.posterior(Matrix(matrix), y, 0.01)
    for time in (0.9, 0.5, 0.1):
        t = torch.full((3,), time, dtype=torch.float64)
        torch.testing.assert_close(model.denoise(x, t), exact.denoise(x, t), rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:a deterministic solver")  # on these Gaussians the likelihood is exact
@pytest.mark.parametrize(("solver", "nfe"), [("pf-ode", 20), ("unipc", 20), ("dpm++2m-sde", 100), ("sde", 100)])
def test_samples_of_the_exact_posterior_and_of_exact_methods_have_its_moments(solver: str, nfe: int) -> None:
    unit = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    exact = unit.posterior(FIRST, Y, 0.5)
    n = 2000
    for model in (exact, PiGDM(unit, FIRST, Y, 0.5), MomentMatching(unit, FIRST, Y, 0.5)):
        x = sample(model, n, solver=solver, nfe=nfe, seed=5).double()
        error = x.mean(0) - exact.means[0]
        spread = exact.covariance.diagonal()
        assert bool((error.abs() < 4 * (spread / n).sqrt() + 0.01).all())
        assert bool((x.var(0) / spread - 1).abs().max() < 4 * math.sqrt(2 / n) + 0.03)


@pytest.mark.filterwarnings("ignore:a deterministic solver")
@pytest.mark.parametrize(("solver", "eta"), [("ddpm", None), ("ddpm", 0.7), ("ddim", None)])
def test_few_ancestral_steps_keep_the_variance_of_the_posterior(solver: str, eta: float | None) -> None:
    """The prior is wide: in each direction that A sees, the posterior of A x_0 is N(y, s^2) to about 1 percent."""
    prior = Gaussian(torch.zeros(2).double(), torch.full((2,), 1.0).double(), sde=VPSDE())
    s, n = 0.05, 2000
    for operator, y in ((FIRST, Y), (Matrix(torch.tensor([[0.3, 0.4]]).double()), Y[:, :1])):
        model = MomentMatching(prior, operator, y, s)
        x = sample(model, n, solver=solver, eta=eta, nfe=20, grid=restoration_times(prior.sde, 20), seed=3).double()
        assert float(residual_rms(operator, x, y).square().mean().sqrt()) == pytest.approx(s, rel=0.06)
        # Without the noise of the steps, the same run follows the observation too closely.
        plain = Fixed(prior, operator, y, s)
        x = sample(plain, n, solver=solver, eta=eta, nfe=20, grid=restoration_times(prior.sde, 20), seed=3).double()
        assert float(residual_rms(operator, x, y).square().mean().sqrt()) < 0.75 * s


@pytest.mark.parametrize("method", [*METHODS, "twisted"])
def test_the_axes_of_samples_and_observations_may_differ(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, y = (torch.randn(3, n, generator=generator).double() / 4 for n in (16, 1))
    flat = Gaussian(torch.zeros(16).double(), torch.ones(16).double(), sde=VPSDE())

    def network(x: Tensor, t: Tensor) -> Tensor:
        return flat.denoise(x.flatten(1), t).reshape(x.shape)

    image = ScoreModel(network, VPSDE(), "data", (1, 4, 4))
    kind = {**METHODS, "twisted": _Twisted}[method]
    x, t = torch.randn(2, 16, generator=generator).double(), torch.tensor([0.1, 0.5]).double()
    one = kind(flat, Matrix(matrix), y.T, 0.1).denoise(x, t)
    other = kind(image, Matrix(matrix, (1, 4, 4)), y.T, 0.1).denoise(x.reshape(2, 1, 4, 4), t)
    assert torch.allclose(other.flatten(1), one, atol=1e-12)


def test_a_run_of_ddpm_takes_the_noise_of_its_steps() -> None:
    """D + V a (y - a D) / (a^2 V + s^2 + (V / rho^2) (a^2 f(s^2 / a^2) - s^2)) for N(0, d^2) and y = a x_0 + n."""
    d, a, s, sde = 0.7, 0.5, 0.1, VPSDE()
    prior = Gaussian(torch.zeros(1).double(), torch.full((1,), d**2).double(), sde=sde)
    y, x = torch.tensor([[0.3]]).double(), torch.tensor([[0.4]]).double()
    model = MomentMatching(prior, Matrix(torch.tensor([[a]]).double()), y, s)
    times = torch.tensor([1.0, 0.5, 0.2, 0.0]).double()
    for eta in (1.0, 0.6):
        bound = model.for_run(SOLVERS["ddpm"], times, eta)
        noise = a**2 * step_noise(sde, times, eta, (s / a) ** 2)
        for k in range(3):
            alpha, sigma = sde.marginal(times[k])
            spread = d**2 * sigma**2 / (d**2 * alpha**2 + sigma**2)
            variance = s**2 + spread * alpha**2 / sigma**2 * (noise[k] - s**2)
            mean = alpha * spread / sigma**2 * x
            expected = mean + spread * a * (y - a * mean) / (a**2 * spread + variance)
            assert torch.allclose(bound.denoise(x, times[k : k + 1]), expected, rtol=1e-6)
    assert model.for_run(SOLVERS["dpm++2m-sde"], times, 1.0) is model
    assert torch.equal(bound.denoise(x, torch.tensor([0.3]).double()), model.denoise(x, torch.tensor([0.3]).double()))


def test_ddnm_follows_y_in_full_until_the_noise_of_the_sample_is_below_that_of_y() -> None:
    prior, s = mixture(), 0.5
    model = DDNM(prior, FIRST, Y, s)
    x = torch.tensor([[0.2, 0.7]]).double()
    for t in (torch.tensor([0.6]).double(), torch.tensor([0.1]).double()):
        alpha, sigma = prior.sde.marginal(t)
        share = min(1.0, float(sigma / (alpha * s)))
        denoised = prior.denoise(x, t)
        expected = torch.cat([(1 - share) * denoised[:, :1] + share * Y[:, :1], denoised[:, 1:]], 1)
        assert torch.allclose(model.denoise(x, t), expected)
    assert share < 0.9


def test_the_settings_of_diffpir_and_dps_have_their_formula() -> None:
    prior, s, strength = mixture(), 0.5, 4.0
    x, t = torch.tensor([[0.2, 0.7]]).double(), torch.tensor([0.2]).double()
    alpha, sigma = prior.sde.marginal(t)
    denoised = prior.denoise(x, t)
    r2 = sigma**2 / (strength * alpha**2)
    seen = denoised[:, :1] + r2 / (r2 + s**2) * (Y - denoised)[:, :1]
    expected = torch.cat([seen, denoised[:, 1:]], 1)
    assert torch.allclose(DiffPIR(prior, FIRST, Y, s, strength=strength).denoise(x, t), expected)
    once, twice = (DPS(prior, FIRST, Y, s, scale=scale).denoise(x, t) - denoised for scale in (1.0, 2.0))
    assert torch.allclose(twice, 2 * once) and float(once.abs().max()) > 0.01


@pytest.mark.parametrize("eta", [1.0, 0.6, 0.0])
def test_a_step_with_its_noise_keeps_the_variance_under_a_wide_prior(eta: float) -> None:
    times, s = torch.tensor([0.7, 0.3, 0.1, 0.0]).double(), 0.2
    alpha, sigma = VPSDE().marginal(times)
    rho = sigma / alpha
    r = rho[1:] / rho[:-1]
    fresh = eta**2 * rho[1:] ** 2 * (1 - r**2)  # the variance of the noise that a step adds to x / alpha
    q = torch.sqrt(rho[1:] ** 2 - fresh) / rho[:-1]
    follow = rho[:-1] ** 2 / (rho[:-1] ** 2 + step_noise(VPSDE(), times, eta, s**2))
    after = ((1 - q) * (1 - follow) + q) ** 2 * (s**2 + rho[:-1] ** 2) + fresh
    assert torch.allclose(after, s**2 + rho[1:] ** 2, rtol=1e-10)


def test_the_noise_of_small_steps_is_that_of_the_observation() -> None:
    fine = torch.linspace(1, 0, 20001, dtype=torch.float64)
    found = step_noise(VPSDE(), fine, 1.0, 0.01)[:-100]
    assert bool(((found >= 0.01) & (found < 0.0101)).all())
    with pytest.warns(UserWarning, match="deterministic solver"):
        assert torch.equal(
            sample(MomentMatching(mixture(), FIRST, Y, 0.0), 3, solver="ddim", nfe=8),
            sample(Fixed(mixture(), FIRST, Y, 0.0), 3, solver="ddim", nfe=8),
        )


class Fixed(MomentMatching):
    """Moment matching with s^2 in every step."""

    def for_run(self, solver: Any, times: Tensor, eta: float) -> Any:
        Observed.for_run(self, solver, times, eta)
        return self


def test_the_exact_wrapper_gives_the_weights_of_the_modes() -> None:
    exact = mixture().posterior(FIRST, Y, 0.5)
    found = mode_weights(exact, sample(exact, 4000, nfe=20))
    assert bool(((found - exact.weights).abs() < 4 * (exact.weights / 4000).sqrt()).all())


@pytest.mark.slow
def test_twisted_particles_give_the_weights_of_the_modes_and_nearer_with_more() -> None:
    prior = mixture()
    exact = prior.posterior(FIRST, Y, 0.5)

    def runs(particles: int, repeats: int) -> Tensor:
        found = [twisted_particles(prior, FIRST, Y, 0.5, particles, steps=60, seed=k) for k in range(repeats)]
        return torch.stack([mode_weights(exact, f.x, f.weights) for f in found])

    few, many = runs(16, 24), runs(256, 8)
    error = many.mean(0) - exact.weights
    assert bool((error.abs() < 4 * many.std(0) / math.sqrt(8)).all())

    def distance(w: Tensor) -> float:
        return float((w - exact.weights).square().sum(1).mean().sqrt())

    assert distance(many) < 0.5 * distance(few)
    # Unweighted, the same guidance is biased: the weights do the work.
    plain = sample(METHODS["replacement"](prior, FIRST, Y, 0.5), 4000, solver="dpm++2m-sde", nfe=60)
    assert float((mode_weights(exact, plain) - exact.weights).abs().max()) > 0.03


def test_particles_are_resampled_only_where_few_are_left() -> None:
    sharp = twisted_particles(mixture(), FIRST, Y, 0.02, 64, steps=40)
    assert min(sharp.ess) < 32 and len(sharp.ess) == 40
    first = next(k for k, size in enumerate(sharp.ess) if size < 32)
    assert sharp.ess[first + 1] > 50  # resampled particles have equal weights again
    assert float(sharp.weights.sum()) == pytest.approx(1)
    assert len(sharp.resample(10)) == 10


@pytest.mark.parametrize("method", METHODS)
def test_every_method_follows_the_observation_and_counts_one_evaluation(method: str) -> None:
    model = METHODS[method](mixture(), FIRST, Y, 0.05)
    assert model.cost == 1
    # The gradient of DPS has no variance of x_0, so a share of samples passes the observation by: of 1,000 samples 20 %
    # with 60 evaluations (mean residual 0.20 +- 0.01), 8 % with 200 (0.10), 3 % with 600 (0.06), on any time grid.
    x = sample(model, 200, solver="dpm++2m-sde", nfe=200 if method == "dps" else 60)
    residual = residual_rms(FIRST, x.double(), Y)
    assert float(residual.mean()) < (0.2 if method == "dps" else 0.1)
    assert float(residual.median()) < 0.1
    with pytest.warns(UserWarning, match="deterministic solver"):
        together = sample(model, 3, nfe=8)
    with pytest.warns(UserWarning, match="deterministic solver"):
        assert torch.equal(sample(model, 3, nfe=8, batch_size=2), together)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_where_alpha_is_0(method: str) -> None:
    x = sample(METHODS[method](mixture(Flow()), FIRST, Y, 0.2), 100, solver="dpm++2m-sde", nfe=60)
    assert bool(x.isfinite().all()) and float(residual_rms(FIRST, x.double(), Y).mean()) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": -1.0}, "standard deviation, >= 0"),
        ({"noise": math.nan}, "standard deviation, >= 0"),
        ({"y": torch.zeros(1, 3)}, "observes"),
        ({"y": torch.zeros(2)}, "observes"),
        ({"clip": (1.0, -1.0)}, "low < high"),
    ],
)
def test_bad_observations_are_refused(change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"y": Y, "noise": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        PiGDM(mixture(), FIRST, settings.pop("y"), settings.pop("noise"), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 1}, "at least 2 particles"),
        ({"noise": 0.0}, "noise > 0"),
        ({"threshold": 0.0}, "share of the particles"),
    ],
)
def test_bad_settings_of_particles_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        twisted_particles(mixture(), FIRST, Y, **{"noise": 0.5, **change})


def test_posteriors_refuse_nonlinear_observations() -> None:
    with pytest.raises(ValueError, match="not linear"):
        mixture().posterior(lambda x: x + 1, Y, 0.5)
    with pytest.raises(ValueError, match="> 0"):
        mixture().posterior(FIRST, Y, 0.0)
    with pytest.raises(ValueError, match="entries, but the operator gives"):
        mixture().posterior(FIRST, torch.zeros(3), 0.5)


@pytest.mark.parametrize("method", ["replacement", "ddnm"])
def test_a_pseudo_inverse_that_amplifies_the_noise_beyond_the_data_is_refused_with_better_methods(method: str) -> None:
    """The gain of A^+ is 1 over the smallest singular value: noise 0.5 / 0.01, for data of deviation 1."""
    observe = torch.diag(torch.tensor([1.0, 0.01])).double()
    kind, y = METHODS[method], torch.zeros(1, 2).double()
    with pytest.raises(InputError, match=r"Matrix turns its noise 0.5 into .*'moment'.*'diffpir'"):
        kind(mixture(), Matrix(observe), y, 0.5)
    kind(mixture(), Matrix(observe), y, 0.0)
    kind(mixture(), Matrix(observe), y, 0.001)  # 0.1 on one of two values
    METHODS["diffpir"](mixture(), Matrix(observe), y, 0.5)
