"""Forward processes: derivatives against autograd, kernels against integrals, inverses, the ends, priors."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM, EDM, SDE, SDES, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE, make_sde, sde_name
from solvers import ReverseProcess, make_grid

ALL = [kind() for kind in SDES.values()] + [VPSDE(0.3, 12.0), VESDE(0.02, 80.0), CosineVPSDE(0.02)]
ids = [repr(sde) for sde in ALL]
T = torch.tensor([1e-6, 1e-4, 1e-3, 0.02, 0.2, 0.5, 0.8, 0.97, 0.999], dtype=torch.float64)


@pytest.mark.parametrize("sde", ALL, ids=ids)
def test_slopes_f_and_g_agree_with_autograd(sde: SDE) -> None:
    dalpha, dsigma = _autograd(sde.alpha, T), _autograd(sde.sigma, T)
    scales = sde(T)
    torch.testing.assert_close(scales.dalpha, dalpha, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(scales.dsigma, dsigma, rtol=1e-11, atol=1e-13)
    f = _autograd(lambda t: sde.alpha(t).log(), T)
    torch.testing.assert_close(sde.f(T), f, rtol=1e-9, atol=1e-13)
    dvar = _autograd(lambda t: sde.sigma(t) ** 2, T)
    torch.testing.assert_close(sde.g(T) ** 2, dvar - 2 * f * sde.sigma(T) ** 2, rtol=1e-8, atol=1e-12)


def _autograd(c: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    t = t.clone().requires_grad_()
    # t * 0 keeps a constant attached to the graph.
    return torch.autograd.grad((c(t) + t * 0).sum(), t)[0]


@pytest.mark.parametrize("t", [0.0, 0.1, 0.37, 1.0])
def test_vp_is_the_sde_of_its_beta(t: float) -> None:
    sde = VPSDE(0.1, 20.0)
    beta = 0.1 + t * 19.9
    assert float(sde.beta(t)) == pytest.approx(beta, rel=1e-15)
    if t > 0:
        assert float(sde.f(t)) == pytest.approx(-beta / 2, rel=1e-12)
        assert float(sde.g(t)) ** 2 == pytest.approx(beta, rel=1e-9)


def test_subvp_and_ve_have_the_published_g() -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    sub = SubVPSDE()
    integral = 0.1 * t + 19.9 * t**2 / 2
    torch.testing.assert_close(sub.g(t) ** 2, sub.beta(t) * (1 - torch.exp(-2 * integral)), rtol=1e-10, atol=0)
    ve = VESDE(0.01, 50.0)
    r = 5000.0
    torch.testing.assert_close(ve.g(t), 0.01 * r**t * math.sqrt(2 * math.log(r)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("sde", [sde for sde in ALL if not isinstance(sde, DDPM)], ids=repr)  # f of DDPM has jumps
def test_kernel_solves_the_moment_equations(sde: SDE) -> None:
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, integrated by Simpson's rule between two times."""
    a, b, n = 0.1, 0.9, 4000
    t = torch.linspace(a, b, 2 * n + 1, dtype=torch.float64)
    f, g2 = sde.f(t), sde.g(t) ** 2
    w = torch.ones_like(t)
    w[1:-1:2], w[2:-1:2] = 4, 2
    w *= (b - a) / (6 * n)
    log_alpha = sde.alpha(t).log()
    torch.testing.assert_close((w * f).sum(), log_alpha[-1] - log_alpha[0], rtol=1e-9, atol=1e-11)
    # var(b) = var(a) (alpha_b/alpha_a)^2 + int (alpha_b/alpha_s)^2 g(s)^2 ds
    pull = torch.exp(2 * (log_alpha[-1] - log_alpha))
    expected = sde.sigma(t[0]) ** 2 * pull[0] + (w * pull * g2).sum()
    torch.testing.assert_close(sde.sigma(t[-1]) ** 2, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("sde", ALL, ids=ids)
def test_time_inverts_half_log_snr(sde: SDE) -> None:
    t = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    torch.testing.assert_close(sde.time(sde.half_log_snr(t)), t, rtol=1e-10, atol=1e-14)
    lam = sde.half_log_snr(torch.linspace(1e-4, 1, 200, dtype=torch.float64))
    assert bool((lam.diff() < 0).all())


@pytest.mark.parametrize("t", ["1e-12", "1e-7", "0.3", "0.999999999"])
def test_accuracy_near_both_ends_against_50_digits(t: str) -> None:
    with mpmath.workdps(50):
        tm = mpmath.mpf(float(t))
        big = mpmath.mpf("0.1") * tm + (mpmath.mpf(20) - mpmath.mpf("0.1")) * tm**2 / 2
        vp = mpmath.sqrt(1 - mpmath.exp(-big))
        s = mpmath.mpf("0.008")
        cos = mpmath.cos(mpmath.pi / 2 * (tm + s) / (1 + s)) / mpmath.cos(mpmath.pi / 2 * s / (1 + s))
        cos_sigma = mpmath.sqrt(1 - cos**2)
        ve = mpmath.mpf("0.01") * mpmath.sqrt(mpmath.mpf(5000) ** (2 * tm) - 1)
    x = torch.tensor(float(t), dtype=torch.float64)
    assert float(VPSDE().sigma(x)) == pytest.approx(float(vp), rel=1e-13)
    assert float(CosineVPSDE().alpha(x)) == pytest.approx(float(cos), rel=1e-12)
    assert float(CosineVPSDE().sigma(x)) == pytest.approx(float(cos_sigma), rel=1e-13)
    assert float(VESDE().sigma(x)) == pytest.approx(float(ve), rel=1e-13)


@pytest.mark.parametrize("sde", ALL, ids=ids)
def test_ends(sde: SDE) -> None:
    alpha, sigma = sde(0.0)[:2]
    assert float(alpha) == 1.0 and float(sigma) == 0.0
    assert float(sde.sigma(torch.tensor(1.0, dtype=torch.float64))) > 0
    expected_zero = isinstance(sde, CosineVPSDE | Flow)
    assert (float(sde(1.0).alpha) == 0) == expected_zero


@pytest.mark.parametrize("sde", ALL, ids=ids)
def test_velocity_weights_invert(sde: SDE) -> None:
    """(x_t, v) determines (x_0, eps) at every time, the ends included."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    (alpha, sigma), (a, b) = sde(t)[:2], sde.velocity_weights(t)
    assert bool((alpha * b - sigma * a > 0.3).all())


def test_flow_velocity_is_the_time_derivative() -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    _, _, dalpha, dsigma = Flow()(t)
    a, b = Flow().velocity_weights(t)
    assert torch.equal(a, dalpha) and torch.equal(b, dsigma)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), Flow()], ids=repr)
def test_perturb_has_the_stated_moments(sde: SDE) -> None:
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t = torch.full((n,), 0.4)
    x = sde.perturb(torch.full((n, 1), 3.0, dtype=torch.float64), t, eps)
    alpha, sigma = (float(c) for c in sde(torch.tensor(0.4))[:2])
    assert float(x.mean()) == pytest.approx(3 * alpha, abs=4 * sigma / n**0.5)
    assert float(x.std()) == pytest.approx(sigma, rel=4 / (2 * n) ** 0.5)


def test_prior_is_keyed_by_seed_and_has_unit_data_marginal() -> None:
    for sde in ALL:
        x = sde.prior((64, 3, 5), seeds=range(64), dtype=torch.float64)
        for k in (0, 13, 63):
            assert torch.equal(x[k], sde.prior((1, 3, 5), seeds=[k], dtype=torch.float64)[0])
        alpha, sigma = (float(c) for c in sde(1.0)[:2])
        many = sde.prior((200_000, 1))
        assert float(many.std()) == pytest.approx(math.hypot(alpha, sigma), rel=4 / 400_000**0.5)


def test_a_schedule_of_ones_own_needs_two_methods() -> None:
    class Quadratic(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - 0.5 * t**2

        def sigma(self, t: Tensor) -> Tensor:
            return t**1.5

    sde = Quadratic()
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    torch.testing.assert_close(sde(t).dalpha, -t)
    torch.testing.assert_close(sde(t).dsigma, 1.5 * t**0.5)
    torch.testing.assert_close(sde.time(sde.half_log_snr(t)), t, rtol=1e-12, atol=0)


def test_two_schedules_of_one_plain_class_do_not_share_grids() -> None:
    """Grids and plans are cached by path: equality must see the attributes of an undecorated subclass."""

    class Power(SDE):
        def __init__(self, p: float) -> None:
            object.__setattr__(self, "p", p)

        def alpha(self, t: Tensor) -> Tensor:
            return 1 - 0.9 * t

        def sigma(self, t: Tensor) -> Tensor:
            return t**self.p

    one, two = Power(1.0), Power(2.0)
    assert one != two
    grids = [make_grid("log-snr", ReverseProcess(lambda x, t: x, sde), 5) for sde in (one, two)]
    assert not torch.equal(*grids)


def test_names_make_the_classes_and_back() -> None:
    for name, kind in SDES.items():
        assert sde_name(kind()) == name
    assert make_sde("ve", sigma_max=10.0) == VESDE(sigma_max=10.0)
    with pytest.raises(ValueError, match=r"unknown SDE 'vpp'; did you mean 'vp'.*cosine"):
        make_sde("vpp")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(5.0, 1.0), "beta_min"),
        (lambda: VESDE(1.0, 0.5), "sigma_min"),
        (lambda: EDM(-1.0), "sigma_max"),
        (lambda: CosineVPSDE(2.0), "offset"),
        (lambda: VPSDE()(1.5), r"t must lie in \[0, 1\].*1.5"),
        (lambda: VPSDE().alpha(torch.tensor(0.5)) and VPSDE().half_log_snr(-0.1), r"t must lie in \[0, 1\]"),
        (lambda: VPSDE().prior((4, 2), seeds=[1, 2]), "expected 4"),
        (lambda: VPSDE().reverse(_noise_model(VPSDE()), eta=-1.0), "eta"),
        (lambda: CosineVPSDE().probability_flow(_noise_model(CosineVPSDE())), "velocity"),
        (lambda: VPSDE(0.2, 9.0).probability_flow(_noise_model(VPSDE())), "made for"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def _noise_model(sde: SDE) -> ScoreModel:
    return ScoreModel(lambda x, t: torch.zeros_like(x), sde)


@pytest.mark.parametrize(
    ("sde", "squared"),
    [
        (VPSDE(0.1, 20.0), 0.1),
        (VPSDE(2.0, 3.0), 2.0),
        (SubVPSDE(), 0.0),
        (CosineVPSDE(), math.pi / 1.008 * math.tan(math.pi / 2 * 0.008 / 1.008)),
        (VESDE(0.01, 50.0), 2 * 0.01**2 * math.log(5000)),
        (DDPM(), -1000 * math.log1p(-1e-4)),
        (EDM(), 0.0),
        (Flow(), 0.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_g_at_the_data_is_the_limit(sde: SDE, squared: float) -> None:
    assert float(sde.g(0.0)) ** 2 == pytest.approx(squared, rel=1e-10, abs=1e-12)
    near = sde.g(torch.tensor([0.0, 1e-9], dtype=torch.float64))
    assert float(near[1] - near[0]) == pytest.approx(0.0, abs=1e-2)
    if type(sde) is VPSDE:  # and without a closed form
        assert float(SDE.variance_slope(sde, torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(
            squared, rel=1e-6
        )
