"""Networks in the conventions of EDM, k-diffusion, flow matching, score_sde, guided-diffusion and azula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import DDPM, EDM, VESDE, VPSDE, Flow, Gaussian, GaussianMixture, log_likelihood, sample
from sde_diffusion.interop import from_azula, from_denoiser, from_discrete, from_score_sde, from_velocity
from solvers import SOLVERS, solve
from solvers.errors import InputError, InputTypeError

MEANS = torch.tensor([[-1.0, 0.5, 2.0], [1.0, 0.0, -1.0]])


def mixture(sde: Any) -> GaussianMixture:
    return GaussianMixture(MEANS, 0.3, sde=sde)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


class Denoiser(nn.Module):
    """The exact D(x, sigma) of a mixture, as EDM's networks are called."""

    sigma_min, sigma_max = 0.01, float("inf")

    def __init__(self) -> None:
        super().__init__()
        self.exact = mixture(EDM(1000.0))
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        self.told.append(sigma)
        return self.exact.denoise(x, sigma.double().reshape(-1) / 1000) + condition.get("class_labels", 0.0)


def test_edm_networks_sample_as_in_their_own_loop() -> None:
    net = Denoiser()
    # Karras et al. 2022, algorithm 1 with the levels of eq. 5, written out
    n, low, high = 9, 0.01 ** (1 / 7), 20.0 ** (1 / 7)
    levels = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)] + [0.0]
    start = 20 * torch.randn(4, 3, dtype=torch.float64)
    x = start
    for now, after in itertools.pairwise(levels):
        d = (x - net(x, torch.tensor(now))) / now
        ahead = x + (after - now) * d
        if after > 0:
            second = (ahead - net(ahead, torch.tensor(after))) / after
            ahead = x + (after - now) * (d + second) / 2
        x = ahead
    model = from_denoiser(net, sigma_max=20.0)
    out = solve(model.sde.probability_flow(model), start, solver="edm", grid=[s / 20 for s in levels])
    assert relative(out.x, x) < 1e-6
    assert out.nfe.tolist() == [17] * 4


def test_a_denoiser_states_its_levels_and_is_not_asked_below() -> None:
    net = Denoiser()
    model = from_denoiser(net, sigma_max=20.0)
    sample(model, 2, shape=(3,), nfe=60)
    assert float(torch.cat(net.told).min()) == pytest.approx(0.01, rel=1e-6)
    assert model.sde == EDM(20.0)
    net.sigma_max = 7.0
    assert from_denoiser(net).sde == EDM(7.0)
    net.img_channels, net.img_resolution = 3, 16
    assert from_denoiser(net).shape == (3, 16, 16)
    shifted = from_denoiser(net).denoise(torch.zeros(1, 3), torch.ones(1), class_labels=torch.ones(1, 3))
    torch.testing.assert_close(shifted, from_denoiser(net).denoise(torch.zeros(1, 3), torch.ones(1)) + 1)


def k_diffusion_sampling() -> Any:
    """k_diffusion.sampling alone: the package itself asks for torchvision and more."""
    from benchmarks.peers.k_diffusion_peer import _sampling

    try:
        return _sampling()
    except ImportError as error:
        pytest.skip(str(error))


K_SAMPLERS = {"sample_dpmpp_2m": "dpm++2m", "sample_heun": "edm", "sample_euler": "ddim"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", K_SAMPLERS)
def test_k_diffusion_samplers(name: str) -> None:
    k_sampling = k_diffusion_sampling()
    net = Denoiser()
    sigmas = k_sampling.get_sigmas_karras(10, 0.01, 20.0)
    x = torch.randn(4, 3) * 20
    expected = getattr(k_sampling, name)(net, x, sigmas, disable=True)
    model = from_denoiser(net, sigma_max=float(sigmas[0]))
    times = (sigmas.double() / sigmas[0].double()).tolist()
    assert relative(solve(model.sde.probability_flow(model), x, solver=K_SAMPLERS[name], grid=times).x, expected) < 1e-5


@pytest.mark.parametrize("time_first", [True, False])
@pytest.mark.parametrize("time", ["reversed", "forward"])
def test_velocity_fields_of_both_directions(time: str, time_first: bool) -> None:
    exact = mixture(Flow())
    told = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        here = 1 - t / 1000 if time == "reversed" else t / 1000
        v = exact.velocity(x, here.double())
        return -v if time == "reversed" else v

    def swapped(t: Tensor, x: Tensor) -> Tensor:
        return velocity(x, t)

    model = from_velocity(swapped if time_first else velocity, time, (3,), scale=1000.0)
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    inside = t.clamp(0.05, 0.95)
    torch.testing.assert_close(model.denoise(x, inside), exact.denoise(x, inside), rtol=1e-6, atol=1e-6)
    # Euler's method of torchcfm: from noise at their 0 to data at their 1
    state = torch.randn(4, 3, dtype=torch.float64)
    found = solve(model.sde.probability_flow(model), state, solver="euler", grid=torch.linspace(1, 0, 21)[:-1].tolist())
    for i in range(19):
        here = torch.full((4,), 1 - i / 20, dtype=torch.float64)
        state = state - exact.velocity(state, here) / 20
    assert relative(found.x, state) < 1e-5
    assert max(float(t.max()) for t in told) <= 1000


def test_the_likelihood_of_a_velocity_field() -> None:
    exact = Gaussian(torch.zeros(2), torch.tensor([1.0, 0.25]), sde=Flow())
    model = from_velocity(lambda t, x: -exact.velocity(x, 1 - t.double()), shape=(2,))
    x = exact.draw(4)
    found = log_likelihood(model, x, trace="exact", tolerance=1e-6).nats
    torch.testing.assert_close(found, exact.log_prob(x, torch.zeros(4)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["vp", "subvp"])
def test_score_sde_vp(kind: str) -> None:
    from sde_diffusion import SubVPSDE

    sde = {"vp": VPSDE, "subvp": SubVPSDE}[kind]()
    exact, told = mixture(sde), []

    def net(x: Tensor, label: Tensor) -> Tensor:
        told.append(label)
        return exact.noise(x, label.double() / 999)

    model = from_score_sde(net, kind, (3,))
    t = torch.tensor([1e-7, 0.1, 1.0], dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(model.noise(x, t)[1:], exact.noise(x, t)[1:], rtol=1e-5, atol=1e-5)
    assert float(told[0].min()) == pytest.approx(999e-5)


def test_score_sde_ve_has_the_data_end_of_its_network() -> None:
    exact, told = mixture(EDM(1000.0)), []

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        told.append(sigma)
        return exact.score(x, sigma.double() / 1000)

    model = from_score_sde(net, "ve", (3,))
    assert isinstance(model.sde, VESDE)
    x = sample(model, 200, nfe=60, seed=3)
    assert float(torch.cat(told).min()) == pytest.approx(0.01, rel=1e-6)
    assert float(torch.cat(told).max()) == pytest.approx(50.0, rel=1e-6)
    expected = sample(mixture(VESDE()), 200, nfe=60, seed=3)
    assert float((x - expected).abs().max()) < 0.02
    # where it is asked at its own levels, the score is that of theirs to rounding: sigma^2 = sigma_min^2 r^(2u)
    t = model.sde.time(-torch.log(torch.tensor([0.02, 3.0, 40.0], dtype=torch.float64)))
    at = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        model.score(at, t), exact.score(at, torch.tensor([0.02, 3.0, 40.0]).double() / 1000), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("betas", ["linear", "cosine", torch.linspace(1e-3, 0.1, 100)])
@pytest.mark.parametrize("learned", [False, True])
def test_discrete_networks(betas: Any, learned: bool) -> None:
    told = []

    def net(x: Tensor, i: Tensor) -> Tensor:
        told.append(i)
        out = torch.tanh(x + i[:, None, None] / 1000)
        return torch.cat([out, out], dim=1) if learned else out

    model = from_discrete(net, betas, shape=(2, 4))
    steps = 1000 if isinstance(betas, str) else 100
    assert isinstance(model.sde, DDPM) and model.sde.steps == steps
    sample(model, 2, nfe=6)
    assert all(i.dtype == torch.int64 for i in told) and int(told[0].max()) == steps - 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["VPSchedule", "CosineSchedule", "RectifiedSchedule"])
def test_azula(name: str) -> None:
    pytest.importorskip("azula", exc_type=ImportError)
    from azula.denoise import KarrasDenoiser
    from azula.noise import CosineSchedule, RectifiedSchedule, VPSchedule
    from azula.sample import DDIMSampler

    torch.manual_seed(0)
    schedule = {"VPSchedule": VPSchedule, "CosineSchedule": CosineSchedule, "RectifiedSchedule": RectifiedSchedule}[
        name
    ]()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(self.layer(torch.cat([x, t.expand(len(x))[:, None]], 1)))

    denoiser = KarrasDenoiser(Net(), schedule)
    sampler = DDIMSampler(denoiser, steps=16, eta=0.0)
    x = torch.randn(4, 3)
    with torch.no_grad():
        expected = sampler(x)
        model = from_azula(denoiser, (3,))
        times = torch.linspace(1, 0, 17, dtype=torch.float64)
        found = solve(model.sde.probability_flow(model), x, solver="ddim", grid=times).x
        assert relative(found, expected) < 1e-5
        assert bool(sample(model, 3, nfe=8).isfinite().all())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_denoiser(3), InputTypeError, "got int"),
        (lambda: from_denoiser(Denoiser(), 5.0, 1.0), InputError, "sigma_min=5.0, sigma_max=1.0"),
        (lambda: from_velocity(Denoiser(), "backward"), InputError, "direction of time"),
        (lambda: from_discrete(Denoiser(), "liner"), InputError, "did you mean 'linear'"),
        (lambda: from_discrete(Denoiser(), [0.5, 1.5]), InputError, "beta_2 of 2 is 1.5"),
        (lambda: from_score_sde(Denoiser(), "vpsde"), InputError, "kind of process"),
        (lambda: from_azula(Denoiser()), InputTypeError, "has a schedule"),
    ],
)
def test_bad_input_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.filterwarnings("ignore:.*diverged")  # Euler's method in sigma, with 12 steps from 20
def test_every_solver_runs_on_a_foreign_model() -> None:
    model = from_denoiser(Denoiser(), sigma_max=20.0, shape=(3,))
    for name, solver in SOLVERS.items():
        if not solver.adaptive:
            assert bool(sample(model, 2, solver=name, nfe=12).isfinite().all()), name
    assert math.isfinite(float(sample(model, 1, solver="rk23").sum()))
