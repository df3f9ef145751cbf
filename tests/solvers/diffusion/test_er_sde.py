from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE
from solvers import BrownianPath, ReverseProcess, solve, steps
from solvers.diffusion.er_sde import ERSDE
from solvers.exponential.adams import ExponentialAdams
from solvers.noise import as_seeds

STD = 0.5
MIXTURE = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]], dtype=torch.float64)


class UnitVectors:
    """Draw k is e_k, so that a linear run on unit vectors gives the coefficient of every draw."""

    def __init__(self) -> None:
        self.draws = 0

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.draws += 1
        out = torch.zeros_like(x)
        out[self.draws] = 1
        return out


def std_error(sde: SDE, p: int, n: int, eta: float = 1.0) -> float:
    """Error of the standard deviation at t = 0.05 for Gaussian data, without sampling."""
    exact = Gaussian(torch.zeros(1), torch.tensor([STD**2]), sde=sde)
    times = torch.linspace(1, 0.05**0.5, n + 1, dtype=torch.float64) ** 2
    x = torch.zeros(n + 1, 1, dtype=torch.float64)
    x[0] = float(exact.moments(times[0])[1]) ** 0.5
    noise = UnitVectors()
    for step in steps(sde.reverse(exact, eta=eta), x, times, ERSDE(p), noise):  # type: ignore[arg-type]
        x = step.x
    return abs(float(x.square().sum()) ** 0.5 - float(exact.moments(times[-1])[1]) ** 0.5)


def test_one_step_equals_the_paper() -> None:
    """Weights of D, D' and the noise in the paper's form, with its integral in 30 digits."""
    mp.mp.dps = 30
    phi = lambda r: r * (mp.exp(r ** mp.mpf("0.3")) + 10)  # noqa: E731
    sde = EDM(sigma_max=40.0)
    rho = [mp.mpf(c) for c in (30, 12, 4)]
    times = torch.tensor([30, 12, 4], dtype=torch.float64) / 40
    d = [mp.mpf("0.7"), mp.mpf("-0.4")]
    values = iter([0.7, -0.4])
    z = mp.mpf(0)
    noise, variance = UnitVectors(), []
    for i in (0, 1):
        start, end = rho[i], rho[i + 1]
        r = phi(end) / phi(start)
        slope = (d[1] - d[0]) / (rho[1] - rho[0]) if i else mp.mpf(0)
        integral = mp.quad(lambda u: 1 / phi(u), [end, start])
        z = r * z + (1 - r) * d[i] + (end - start + phi(end) * integral) * slope
        variance.append(end**2 - r**2 * start**2)
        scale = r
    ode = ReverseProcess(lambda x, t: torch.full_like(x, next(values)), sde, 1.0)
    x = torch.zeros(4, 1, dtype=torch.float64)
    for step in steps(ode, x, times, ERSDE(2), noise):  # type: ignore[arg-type]
        x = step.x
    x = x.flatten()
    assert float(x[0]) == pytest.approx(float(z), rel=1e-13)
    assert float(x[2] - x[0]) == pytest.approx(float(mp.sqrt(variance[1])), rel=1e-13)
    assert float(x[1] - x[0]) == pytest.approx(float(scale * mp.sqrt(variance[0])), rel=1e-13)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_without_noise_it_is_the_adams_method_in_rho(p: int) -> None:
    """From a finite rho; polynomials that reach back to pure noise are in the angle in the exponential engine."""
    for sde in (VPSDE(), EDM()):
        ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
        x = sde.prior((4, 2), dtype=torch.float64)
        adams = ExponentialAdams(p, form="data", variable="rho")
        for grid in ("quadratic", "karras", "uniform"):
            ours = solve(ode, x, solver=ERSDE(p), nfe=8, grid=grid).x
            assert torch.allclose(ours, solve(ode, x, solver=adams, nfe=8, grid=grid).x, rtol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_weak_order(p: int, sde: SDE) -> None:
    slope = math.log2(std_error(sde, p, 40) / std_error(sde, p, 160)) / 2
    assert slope == pytest.approx(ERSDE(p).order, abs=0.15)


def test_the_variance_is_right_for_constant_data() -> None:
    # D is constant: every step is exact in mean and in variance, from pure noise too.
    for sde in (VPSDE(), CosineVPSDE()):
        times = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=torch.float64)
        x = torch.full((5, 1), 0.3, dtype=torch.float64)
        x[1] = 0.3 + float(sde(times[0]).sigma)  # the coefficient of x_1's own noise
        process = ReverseProcess(lambda x, t: torch.full_like(x, 0.3), sde, 1.0)
        noise = UnitVectors()
        noise.draws = 1
        alpha = float(sde(times[0]).alpha)
        x = x - 0.3 + 0.3 * alpha
        for step in steps(process, x, times, ERSDE(3), noise):  # type: ignore[arg-type]
            x = step.x
        alpha, sigma = (float(c) for c in sde(times[-1])[:2])
        assert float(x[0]) == pytest.approx(0.3 * alpha, rel=1e-12)
        assert float((x - x[0]).square().sum()) == pytest.approx(sigma**2, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 3])
def test_strong_order_is_1(p: int) -> None:
    sde = VPSDE()
    process = sde.reverse(GaussianMixture(MIXTURE[:1], 0.6, sde=sde))
    x = sde.prior((32, 2), dtype=torch.float64)

    def end(n: int) -> Tensor:
        times = torch.linspace(1, 0.05**0.5, n + 1, dtype=torch.float64) ** 2
        path = BrownianPath(as_seeds(range(32), 32), process.clock, depth=26)
        for step in steps(process, x, times, ERSDE(p), path):
            out = step.x
        return out

    truth = end(960)
    errors = [float((end(n) - truth).square().mean().sqrt()) for n in (20, 40, 80)]
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(1, abs=0.2)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="1 to 3 values; got values=4"):
        ERSDE(4)
    sde = VPSDE()
    process = sde.reverse(GaussianMixture(MIXTURE, STD, sde=sde))
    with pytest.raises(ValueError, match="the grid increases"):
        solve(process, torch.zeros(1, 2), solver="er-sde", grid=[0.2, 0.6])
