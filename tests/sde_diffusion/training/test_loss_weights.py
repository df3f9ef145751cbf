"""Every weight is what its paper says of the quantity that its paper speaks of: checked on what a network outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.training.loss_weights import (
    LOSS_WEIGHTS,
    P2,
    EDMWeight,
    MinSNR,
    Sigmoid,
    Uncertainty,
    Weight,
    learned_weight,
    likelihood,
    simple,
    velocity,
    weight_for,
)
from sde_diffusion.training.losses import denoising_loss

T = torch.tensor([1e-3, 0.01, 0.1, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
PATHS = [VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), EDM(), Flow(), DDPM()]
SPHERES = [VPSDE(), CosineVPSDE(), DDPM()]


def on_output(weight: Weight, sde: SDE, predicts: str, sigma_data: float = 0.5) -> Tensor:
    """The factor of ||output - target||^2 / d, read off the loss of a network that is off by 1 everywhere."""
    x0, eps = torch.randn(2, len(T), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = ScoreModel(None, sde, predicts, sigma_data=sigma_data)
    wrong = ScoreModel(lambda x, t: probe.target(x0, eps, T) + 1, sde, predicts, sigma_data=sigma_data)
    return denoising_loss(wrong, x0, T, eps, weight).double()


def snr(sde: SDE) -> Tensor:
    alpha, sigma = sde.marginal(T)
    return (alpha / sigma) ** 2


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other.double(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_simple_is_the_plain_error_of_the_noise(sde: SDE) -> None:
    close(on_output(simple, sde, "noise"), torch.ones_like(T))
    close(on_output(simple, sde, "data"), snr(sde))
    close(on_output(simple, sde, "score"), sde.marginal(T)[1] ** 2)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_likelihood_is_the_rate_of_the_log_snr_on_the_noise(sde: SDE) -> None:
    """And half the rate of the SNR on the data error (Kingma et al. 2021, eq. 13), by central differences."""
    if isinstance(sde, DDPM):
        h = torch.full_like(T, 1e-7)
        t = T - 5e-4  # amid a step, where the path is smooth
    else:
        h, t = T * 1e-5, T
    log_snr = [2 * sde.half_log_snr(t + k * h) for k in (-1, 1)]
    rate = -(log_snr[1] - log_snr[0]) / (2 * h)
    torch.testing.assert_close(likelihood(sde, t) / sde.marginal(t)[1] ** 2, rate, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_velocity_is_the_plain_error_of_the_velocity(sde: SDE) -> None:
    close(on_output(velocity, sde, "velocity"), torch.ones_like(T))
    if sde in SPHERES:
        close(on_output(velocity, sde, "data"), snr(sde) + 1)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_edm_gives_the_output_of_an_edm_network_weight_one(sde: SDE) -> None:
    close(on_output(EDMWeight(0.5), sde, "edm", 0.5), torch.ones_like(T))


def test_edm_is_the_lambda_of_the_paper_on_the_data() -> None:
    sigma = 80 * T
    close(on_output(EDMWeight(0.5), EDM(), "data"), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_on_data_noise_and_velocity(sde: SDE, gamma: float) -> None:
    """Hang et al. 2023, section 3.4: min(SNR, gamma), over SNR for the noise, over SNR + 1 for the velocity."""
    least = snr(sde).clamp_max(gamma)
    close(on_output(MinSNR(gamma), sde, "data"), least)
    close(on_output(MinSNR(gamma), sde, "noise"), least / snr(sde))
    if sde in SPHERES:
        close(on_output(MinSNR(gamma), sde, "velocity"), least / (snr(sde) + 1))


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_p2_on_the_noise_and_where_it_is_a_known_weight(sde: SDE) -> None:
    for gamma, k in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.2)):
        close(on_output(P2(gamma, k), sde, "noise"), 1 / (k + snr(sde)) ** gamma)
    torch.testing.assert_close(P2(0.0)(sde, T), simple(sde, T))
    if sde in SPHERES:
        alpha, sigma = sde.marginal(T)
        close(on_output(P2(), sde, "data"), alpha**2)
        close(on_output(P2(), sde, "velocity"), (alpha * sigma) ** 2)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0])
def test_sigmoid_is_a_mirrored_sigmoid_on_the_data(bias: float) -> None:
    """Hoogeboom et al. 2024: sigmoid(b - l) on the noise is e^b sigmoid(l - b) on the data, l = log SNR."""
    sde = VPSDE()
    rate = likelihood(sde, T) / sde.marginal(T)[1] ** 2
    log_snr = 2 * sde.half_log_snr(T)
    close(on_output(Sigmoid(bias), sde, "noise"), rate / (1 + torch.exp(log_snr - bias)))
    close(on_output(Sigmoid(bias), sde, "data"), rate * math.exp(bias) / (1 + torch.exp(bias - log_snr)))


@pytest.mark.parametrize("predicts", ["data", "velocity"])
def test_one_path_in_another_clock_and_scale_weighs_its_noise_alike(predicts: str) -> None:
    """Weights that depend on the SNR alone are the same function of it on every path."""
    flow, vp = Flow(), VPSDE()
    t = vp.time(flow.half_log_snr(T))
    for weight in (EDMWeight(0.7), MinSNR(), P2()):
        ratio = weight(flow, T) / flow.marginal(T)[1] ** 2
        torch.testing.assert_close(weight(vp, t) / vp.marginal(t)[1] ** 2, ratio, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSS_WEIGHTS if name not in ("edm", "uncertainty")])
def test_weights_are_finite_up_to_the_ends(name: str) -> None:
    for sde in (VPSDE(), VESDE(), DDPM()):
        ends = LOSS_WEIGHTS[name](sde, torch.tensor([1e-9, 1.0], dtype=torch.float64))
        assert bool((ends.isfinite() & (ends > 0)).all())
    if name in ("min-snr", "p2", "simple"):
        assert float(LOSS_WEIGHTS[name](CosineVPSDE(), torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(1.0)


def test_the_model_lends_its_sigma_data() -> None:
    x0, eps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.2, 0.5, 0.9])
    losses = [
        denoising_loss(ScoreModel(lambda x, t: x, VPSDE(), "edm", sigma_data=0.3), x0, t, eps, weight)
        for weight in ("edm", EDMWeight(0.3), EDMWeight(0.6))
    ]
    assert torch.equal(losses[0], losses[1]) and not torch.allclose(losses[0], losses[2])
    assert weight_for("simple", 0.3) is simple


def test_a_learned_uncertainty_makes_every_time_count_one() -> None:
    """It finds log E[l | t]: the loss it weighs is then 1 at each of four times, and the whole 1 + mean log l."""
    sde, weigh = VPSDE(), Uncertainty()
    t = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    expected = torch.tensor([1e-3, 0.1, 2.0, 50.0])
    optimizer = torch.optim.LBFGS(weigh.parameters(), lr=1, max_iter=500, line_search_fn="strong_wolfe")

    def total() -> Tensor:
        # two losses of unlike size whose mean is the expected one
        return (weigh(sde, t, 0.5 * expected) + weigh(sde, t, 1.5 * expected)).mean() / 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = total()
        loss.backward()
        return loss

    assert float(total().detach()) == pytest.approx(float(expected.mean()))
    optimizer.step(closure)
    torch.testing.assert_close(weigh.u(sde, t).detach(), expected.log(), rtol=0, atol=0.02)
    assert float(total().detach()) == pytest.approx(1 + float(expected.log().mean()), abs=1e-3)


def test_uncertainty_is_the_same_module_in_every_process_and_bounded_at_pure_noise() -> None:
    one, two = learned_weight("uncertainty"), learned_weight("uncertainty")
    assert one is not None and two is not None
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    torch.nn.init.normal_(one.linear.weight, generator=torch.Generator().manual_seed(0))
    assert bool(one.u(CosineVPSDE(), torch.tensor([1e-9, 1.0], dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weight_for("minsnr", 1.0), "did you mean 'min-snr'"),
        (lambda: MinSNR(0.0), "gamma"),
        (lambda: P2(k=0.0), "k > 0"),
        (lambda: EDMWeight(0.0), "sigma_data"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
