"""The adaptive SDE solver: its law, the kept path, exact steps, the interval, caps and failures."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import Equation, ReverseProcess, solve
from solvers.brownian_path import BrownianPath
from solvers.classical.adaptive_sde import AdaptiveSDE, _coefficients
from solvers.noise import as_seeds, standard_normal

MODES = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def bimodal(sde: SDE) -> GaussianMixture:
    return GaussianMixture(MODES, 0.1, torch.tensor([0.3, 0.7]), sde=sde)


def start(mix: GaussianMixture, n: int) -> Tensor:
    """Exact draws of x_1."""
    alpha, sigma = (float(c) for c in mix.sde(1.0)[:2])
    return alpha * mix.draw(n, 1) + sigma * standard_normal(range(n), (1,), 7).double()


def check_modes(sde: SDE, tolerance: float, n: int) -> None:
    mix = bimodal(sde)
    out = solve(
        sde.reverse(mix),
        start(mix, n),
        solver=AdaptiveSDE(tolerance, tolerance),
        grid="ends",
        seeds=range(n),
    )
    assert set(out.status) == {"ok"}
    up = out.x[:, 0] > 0
    assert abs(float(up.double().mean()) - 0.7) < 3 * math.sqrt(0.21 / n)
    for mode in (out.x[up, 0], out.x[~up, 0]):
        assert abs(float(mode.std()) - 0.1) < 3 * 0.1 / math.sqrt(2 * len(mode))


def test_modes_and_widths() -> None:
    """3,000 samples of 0.3 N(-1, 0.01) + 0.7 N(1, 0.01).

    Weight and widths within 3 standard errors.
    """
    check_modes(VPSDE(), 0.03, 3000)


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE()])
@pytest.mark.parametrize("tolerance", [0.03, 0.01, 0.003])
def test_modes_and_widths_at_three_tolerances(sde: SDE, tolerance: float) -> None:
    check_modes(sde, tolerance, 6000)


def test_the_path_is_kept_across_rejections() -> None:
    """Dx = sin(40 x)/10 dt + dw, with many a rejection, stays within 1/10 of its own w."""
    seeds = as_seeds(range(500), 500)
    wiggle = Equation(lambda x, t: 0.1 * torch.sin(40 * x), lambda x, t: torch.ones(()))
    out = solve(
        wiggle,
        torch.zeros(500, 1).double(),
        solver=AdaptiveSDE(1e-3, 1e-3),
        grid=[0.0, 1.0],
        seeds=seeds,
    )
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    w = BrownianPath(seeds, wiggle.clock, depth=26).increment(torch.zeros(500, 1), zero, one)
    assert float(out.nfe.double().mean()) > 40
    assert float((out.x - w).abs().max()) < 0.1


def test_it_converges_to_the_solution_on_the_same_path() -> None:
    """Medians: a few samples near the ridge between the modes dominate the mean."""
    sde = VPSDE()
    mix = GaussianMixture(torch.tensor([[-1.0, 0.3], [0.8, 0.0]]).double(), 0.3, sde=sde)
    seeds = as_seeds(range(64), 64)
    x1 = sde.prior((64, 2), seeds=seeds, dtype=torch.float64)
    dense = torch.linspace(1, math.sqrt(0.05), 401, dtype=torch.float64) ** 2
    dense[-1] = 0.05
    fixed = solve(sde.reverse(mix), x1, solver="sde", grid=dense, seeds=seeds).x
    errors = []
    for tolerance in (0.1, 0.02, 0.004):
        solver = AdaptiveSDE(tolerance, tolerance)
        out = solve(sde.reverse(mix), x1, solver=solver, grid=[1.0, 0.05], seeds=seeds)
        errors.append(float((out.x - fixed).norm(dim=1).median()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.03


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE(), Flow()])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_coefficients_solve_the_linear_part(sde: SDE, eta: float) -> None:
    """A, B and N against scipy integration of the drift for m = 0 and 1, and of the variance."""
    t, s, d = 0.7, 0.55, 0.8
    process = ReverseProcess(lambda x, t: x, sde, eta)
    times = [torch.full((1, 1), c, dtype=torch.float64) for c in (t, s)]
    got = [float(c) for c in _coefficients(process, torch.zeros(1, 1).double(), *times, d)]

    def rates(at: float) -> tuple[float, float, float]:
        """(coefficient of x, coefficient of m, eta^2 g^2) at a time, from the drift."""
        alpha, sigma = (float(c) for c in sde(at)[:2])
        n = math.hypot(sigma, d * alpha)

        def drift(x: float, m: float) -> float:
            x0 = (m * sigma * d + d**2 * alpha * x / n) / n
            one = torch.full((1, 1), at, dtype=torch.float64)
            return float(process.drift_from(torch.full((1, 1), x0).double(), torch.full((1, 1), x).double(), one))

        g = float(process.diffusion(torch.zeros(1, 1).double(), torch.tensor([[at]]).double()))
        return drift(1, 0), drift(0, 1), g**2

    def rhs(at: float, y: list[float]) -> list[float]:
        linear, source, g2 = rates(at)
        return [linear * y[0], linear * y[1] + source, 2 * linear * y[2] - g2]

    y = integrate.solve_ivp(rhs, (t, s), [1.0, 0.0, 0.0], rtol=1e-10, atol=1e-12).y[:, -1]
    assert got == pytest.approx([y[0], y[1], math.sqrt(max(y[2], 0))], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gaussian_data_of_the_assumed_width_is_exact_in_any_steps(eta: float) -> None:
    """The network's m is then 0: the error estimate vanishes and no step is rejected."""
    data = Gaussian(torch.zeros(1), torch.tensor([0.25]), sde=VPSDE())
    x1 = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    solver = AdaptiveSDE(1e-6, 1e-6, sigma_data=0.5)
    out = solve(VPSDE().reverse(data, eta=eta), x1, solver=solver, grid=[1.0, 0.01])
    assert int(out.nfe.max()) < 30
    if eta == 0:
        assert torch.allclose(out.x, data.flow(x1, 1.0, 0.01), rtol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), CosineVPSDE(), EDM(), Flow()])
def test_it_never_leaves_the_interval_and_ends_on_it(sde: SDE) -> None:
    seen = []
    mix = bimodal(sde)

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return mix.denoise(x, t)

    grid = [0.93, 0.4, 0.11]
    out = solve(
        ReverseProcess(model, sde, 1.0),
        torch.zeros(8, 1).double(),
        solver="adaptive-sde",
        grid=grid,
    )
    times = torch.cat(seen)
    assert float(times.min()) == 0.11
    assert float(times.max()) == 0.93
    assert set(out.status) == {"ok"}
    assert out.x.isfinite().all()


def test_evaluations_are_two_per_attempt_and_capped() -> None:
    sde = VPSDE()
    mix = bimodal(sde)
    x1 = start(mix, 16)
    out = solve(sde.reverse(mix), x1, solver="adaptive-sde", seeds=range(16))
    assert set((out.nfe % 2).tolist()) == {1}  # pairs and the finishing one
    assert len(set(out.nfe.tolist())) > 1
    for cap in (3, 4, 10, 31):
        capped = solve(sde.reverse(mix), x1, solver="adaptive-sde", nfe=cap, seeds=range(16))
        assert int(capped.nfe.max()) <= cap
        assert set(capped.status) == {"nfe_cap"}
        assert capped.x.isfinite().all()
    with pytest.raises(ValueError, match=r"at least 3|more than nfe"):
        solve(sde.reverse(mix), x1, solver="adaptive-sde", nfe=2)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    sde = VPSDE()
    mix = bimodal(sde)
    x1 = start(mix, 64)
    together = solve(sde.reverse(mix), x1, solver="adaptive-sde", seeds=range(64))
    for rows in (slice(0, 7), slice(40, 41)):
        alone = solve(sde.reverse(mix), x1[rows], solver="adaptive-sde", seeds=range(64)[rows])
        assert alone.nfe.tolist() == together.nfe[rows].tolist()
        assert torch.allclose(alone.x, together.x[rows], atol=1e-6)


def test_images_and_float32_are_kept() -> None:
    sde = VPSDE()
    mix = GaussianMixture(torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 0.2, sde=sde)
    out = solve(sde.reverse(mix), sde.prior((3, 1, 4, 4)), solver="adaptive-sde")
    assert out.x.dtype == torch.float32
    assert out.x.shape == (3, 1, 4, 4)
    assert set(out.status) == {"ok"}


@pytest.mark.parametrize("sde", [VPSDE(), Flow()])
def test_a_model_that_fails_stops_its_own_sample(sde: SDE) -> None:
    mix = bimodal(sde)

    def model(x: Tensor, t: Tensor) -> Tensor:
        broken = (torch.arange(len(x)) == 0)[:, None] & (len(x) == 4) & (t < 0.5)[:, None]
        return mix.denoise(x, t).masked_fill(broken, math.nan)

    x1 = start(mix, 4)
    out = solve(ReverseProcess(model, sde, 1.0), x1, solver="adaptive-sde", seeds=range(4), nfe=400)
    assert out.status[1:] == ["ok"] * 3
    always = ReverseProcess(lambda x, t: torch.full_like(x, math.nan), sde, 1.0)
    assert set(solve(always, x1, solver="adaptive-sde", nfe=400).status) == {"non_finite"}
    assert int(solve(always, x1, solver="adaptive-sde", nfe=400).nfe.max()) <= 3


def test_ornstein_uhlenbeck() -> None:
    """4,000 samples of dx = -x dt + sqrt 2 dw from 2.

    Mean 2/e, variance 1 - e^-2, within 4 standard errors.
    """
    n = 4000
    ou = Equation(lambda x, t: -x, lambda x, t: torch.full((), 2.0).sqrt())
    x = solve(ou, torch.full((n, 1), 2.0), solver="adaptive-sde", grid=[0.0, 1.0], seeds=range(n)).x
    variance = -math.expm1(-2)
    assert float(x.mean()) == pytest.approx(2 / math.e, abs=4 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / n))


@pytest.mark.parametrize("settings", [{"rtol": 0.0}, {"atol": -1.0}, {"first": 0.0}, {"sigma_data": 0.0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        AdaptiveSDE(**settings)
