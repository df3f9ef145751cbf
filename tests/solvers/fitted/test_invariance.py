"""The default depends on the noise levels of a path alone, and not on where the zero of the data is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion import DDPM, VPSDE, CosineVPSDE, Flow, GaussianMixture
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import ReverseProcess, Scales, solve
from solvers.fitted.invariance import within
from solvers.fitted.pf_ode import ProbabilityFlow, fitted_table
from solvers.noise import NoNoise
from solvers.planning import plan

MEANS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ONE = torch.ones((), dtype=torch.float64)


def denoiser(means: Tensor, std: float, scales):
    """D(x, t) of a mixture on any path, without the names of its times."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:1].double() for c in scales(t)[:2])
        variance = (alpha * std) ** 2 + sigma**2
        apart = x.flatten(1)[:, None] - alpha * means
        r = torch.softmax(-apart.square().sum(2) / (2 * variance), 1)
        mean = r @ means
        return (mean + alpha * std**2 / variance * (x.flatten(1) - alpha * mean)).reshape(x.shape)

    return denoise


def edm(top: float):
    return lambda t: Scales(torch.ones_like(t), top * t, torch.zeros_like(t), top * torch.ones_like(t))


def straight(top: float):
    end = top / (1 + top)
    return lambda t: Scales(1 - end * t, end * t, -end * torch.ones_like(t), end * torch.ones_like(t))


def geometric(top: float):
    """Sigma falls by a power of t, as in no library."""
    return lambda t: Scales(torch.ones_like(t), top * t**3, torch.zeros_like(t), 3 * top * t**2)


def run(scales, nfe: int, means: Tensor = MEANS, std: float = 0.3, shift: float | Tensor = 0.0) -> Tensor:
    alpha, sigma = (float(c) for c in scales(ONE)[:2])
    process = ReverseProcess(denoiser(means + shift, std, scales), scales)
    return solve(process, sigma * EPS + alpha * shift, nfe=nfe).x


@pytest.mark.parametrize("process", [VPSDE(), VPSDE(beta_max=6.0), DDPM()], ids=["VP", "VP to 4", "DDPM"])
@pytest.mark.parametrize("nfe", [3, 5, 8, 10, 15, 16, 50])
def test_paths_of_one_range_have_one_result(process, nfe):
    alpha, sigma = (float(c) for c in process.marginal(1.0))
    own = run(lambda t: process(t), nfe)
    for other in (edm, straight, geometric):
        assert float((run(other(sigma / alpha), nfe) - own).abs().max()) < 1e-6, other.__name__


@pytest.mark.parametrize("start", [3.0, 6.6, 14.6, 40.0, 152.0, 1000.0, math.inf])
def test_data_moved_by_3_have_samples_moved_by_3(start):
    scales = straight(start) if start < math.inf else Flow()
    for nfe in (3, 5, 8, 10, 15, 20):
        for shift in (3.0, torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)):
            moved = run(scales, nfe, shift=shift)
            assert torch.allclose(moved, run(scales, nfe) + shift, atol=1e-9), (nfe, shift)


@pytest.mark.parametrize("scale", [0.01, 100.0])
@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (1, 24, 24)])
def test_data_times_c_have_samples_times_c_from_noise_times_c(scale, shape):
    """On paths of one alpha, whose noise levels are times c too."""
    d = math.prod(shape)
    means = torch.randn(4, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    eps = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for start in (14.6, 80.0):
        for nfe in (5, 8, 15, 20):
            one, other = (
                solve(
                    ReverseProcess(denoiser(c * means, 0.2 * c, edm(c * start)), edm(c * start)),
                    c * start * eps,
                    solver=ProbabilityFlow(scale=c),
                    nfe=nfe,
                ).x
                for c in (1.0, scale)
            )
            assert torch.allclose(other / scale, one, atol=1e-8), (start, nfe)


def test_wide_data_gain_by_their_scale():
    """From 152, which is 7.6 times the scale of these data: the fitted noise levels are far too low for them."""
    sde = VPSDE()
    model = GaussianMixture(20 * MEANS, std=4.0, sde=sde)
    x1 = sde.prior((16, 3), seeds=range(16), dtype=torch.float64)
    ode = sde.probability_flow(model)
    truth = solve(ode, x1, solver="adams", nfe=400, grid="karras").x
    for nfe in (5, 8, 20):
        plain, scaled = (
            float((solve(ode, x1, solver=ProbabilityFlow(scale=c), nfe=nfe).x - truth).square().mean().sqrt())
            for c in (1.0, 20.0)
        )
        assert scaled < 0.5 * plain, nfe
    with pytest.raises(ValueError, match="positive"):
        ProbabilityFlow(scale=0.0)


def test_a_solver_in_units_of_the_data_survives_json():
    solver = plan(
        VPSDE().probability_flow(GaussianMixture(MEANS, 0.3, sde=VPSDE())), (3,), ProbabilityFlow(scale=5.0), 8
    )
    assert restore_solver(describe_solver(solver[0])) == solver[0]
    assert "scale 5" in solver[0].source


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 24, 24)])
def test_images_are_moved_by_a_constant_for_each_channel(shape):
    sde = VPSDE()
    d = math.prod(shape)
    means = torch.randn(4, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x1 = sde.prior((3, *shape), seeds=range(3), dtype=torch.float64)
    alpha = float(sde.marginal(1.0)[0])
    shift = torch.linspace(3, -2, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    for nfe in (5, 8, 15, 20):
        base, other = (
            solve(ReverseProcess(denoiser(means + s.flatten(), 0.2, sde), sde), x1 + alpha * s, nfe=nfe).x
            for s in (torch.zeros(shape, dtype=torch.float64), shift)
        )
        assert torch.allclose(other, base + shift, atol=1e-8), nfe


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), VPSDE(beta_max=4.0)], ids=["VP", "cosine", "low"])
@pytest.mark.parametrize("shape", [(3,), (2, 16, 16)])
def test_a_point_mass_is_exact(sde, shape):
    point = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x1 = sde.prior((4, *shape), seeds=range(4))
    ode = ReverseProcess(lambda x, t: point.expand_as(x).clone(), sde)
    for nfe in (3, 5, 10, 15, 20):
        assert float((solve(ode, x1, nfe=nfe).x - point).abs().max()) < 1e-6, nfe


def test_narrow_data_lose_nothing_to_the_safe_method():
    """Spread 0.001: rows that were fitted to data of size 1 are off by many times the data's own size."""
    sde = VPSDE()
    model = GaussianMixture(torch.full((1, 8), 0.7, dtype=torch.float64), std=1e-3, sde=sde)
    x1 = sde.prior((16, 8), seeds=range(16), dtype=torch.float64)
    ode = sde.probability_flow(model)
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    truth = 0.7 + (x1 - 0.7 * alpha) * 1e-3 / math.hypot(1e-3 * alpha, sigma)
    for nfe in (5, 8, 10, 15):
        own, other = (float((solve(ode, x1, solver=s, nfe=nfe).x - truth).square().mean()) for s in ("pf-ode", "unipc"))
        assert own < 1.1**2 * other, nfe


def test_the_first_step_from_a_start_between_levels_is_of_second_order():
    """Gaussian data: the second state is nearer to the flow for the correction of the first."""
    scales = edm(6.6)
    table = fitted_table(scales, 8)
    assert table is not None and table.invariance is not None and not table.invariance.exact

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        sigma = scales(t[0]).sigma
        return 0.25 / (0.25 + sigma**2) * x

    problem = ReverseProcess(denoise, scales)
    times = torch.tensor(table.times, dtype=torch.float64)
    x1, state = 6.6 * EPS, table.init(problem, times)
    x, _, state = table.step(problem, x1, times[0], times[1], state, NoNoise())
    assert torch.equal(state.base, x1)
    after = table.step(problem, x, times[1], times[2], state, NoNoise())
    kept = state._replace(base=None)
    without = table.step(problem, x, times[1], times[2], kept, NoNoise())
    exact = x1 * ((0.25 + scales(times[2]).sigma ** 2) / (0.25 + 6.6**2)).sqrt()
    errors = [float((v - exact).abs().max()) for v in (after[0], without[0])]
    assert errors[0] < 0.5 * errors[1], errors
    assert after[2].base is None


def test_a_step_is_kept_within_a_multiple_of_the_last_changes_of_each_sample():
    safe, x = torch.zeros(3, 2), torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.3, 0.4]])
    new, old = torch.ones(3, 2), torch.ones(3, 2)
    old[0, 0] = 0.0  # a change of 1 in the first sample, none in the second, and of 2 in the third
    old[2, 1] = -1.0
    found, share = within(x, safe, 0.5, (new, old), 4.0)
    expected = torch.stack([x[0] * 2 / 5, safe[1], x[2]])
    torch.testing.assert_close(found, expected)
    # The larger of the last two changes counts.
    torch.testing.assert_close(share, torch.tensor([0.4, 0.0, 1.0]))
    found, _ = within(x, safe, 0.5, (new, new, old), 4.0)
    torch.testing.assert_close(found, expected)
