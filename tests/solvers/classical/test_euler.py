"""Euler-Maruyama and stochastic Heun.

Orders without Monte Carlo, laws at 1,000 steps, Ito, the start at pure noise.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import SOLVERS, Equation, make_grid, solve, steps
from solvers.brownian_path import BrownianPath
from solvers.noise import as_seeds
from tests.solvers.linear import chain_law, law, orders, quadratic

END = 0.05


def gaussian(sde: SDE, mean: float = 1.5, variance: float = 0.25) -> Gaussian:
    return Gaussian(torch.tensor([mean]), torch.tensor([variance]), sde=sde)


def law_errors(name: str, sde: SDE) -> tuple[list[float], list[float]]:
    """Errors of the mean and of the variance at 40, 80, 160 and 320 steps."""
    data = gaussian(sde)
    mean, variance = (float(c) for c in data.moments(torch.tensor(END, dtype=torch.float64)))
    laws = [chain_law(data, SOLVERS[name], quadratic(n, END)) for n in (40, 80, 160, 320)]
    return [abs(m - mean) for m, _ in laws], [abs(v - variance) for _, v in laws]


def test_chain_law_is_the_law() -> None:
    data = gaussian(VPSDE())
    for name in ("euler-maruyama", "stochastic-heun", "pc"):
        assert chain_law(data, SOLVERS[name], quadratic(12, 0.0)) == pytest.approx(
            law(data, SOLVERS[name], quadratic(12, 0.0)), rel=1e-12
        )


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), Flow()])
def test_euler_maruyama_has_weak_order_1(sde: SDE) -> None:
    means, variances = law_errors("euler-maruyama", sde)
    if sde == Flow():  # straight in the mean
        assert max(means) < 1e-12
    else:
        assert orders(means)[-1] == pytest.approx(1, abs=0.15)
    assert orders(variances)[-1] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE()])
def test_stochastic_heun_has_weak_order_2(sde: SDE) -> None:
    means, variances = law_errors("stochastic-heun", sde)
    assert orders(means)[-1] == pytest.approx(2, abs=0.15)
    assert orders(variances)[-1] == pytest.approx(2, abs=0.15)


def test_sde_has_weak_order_2_and_is_exact_for_unit_data() -> None:
    """The velocity form removes a Gaussian of standard deviation sigma_data = 1 whole."""
    unit = gaussian(VPSDE(), 0.0, 1.0)
    assert law(unit, SOLVERS["sde"], quadratic(3)) == pytest.approx((0, 1), abs=1e-12)
    data = gaussian(VPSDE())
    mean, variance = (float(c) for c in data.moments(torch.tensor(END, dtype=torch.float64)))
    laws = [law(data, SOLVERS["sde"], quadratic(n)) for n in (80, 160, 320)]
    assert orders([abs(m - mean) for m, _ in laws])[-1] == pytest.approx(2, abs=0.15)
    assert orders([abs(v - variance) for _, v in laws])[-1] == pytest.approx(2, abs=0.15)


def test_exponential_euler_maruyama_has_weak_order_1_and_an_exact_mean() -> None:
    """For constant noise prediction the mean of a Gaussian does not move.

    Only the variance has an error.
    """
    data = gaussian(VPSDE(), mean=0.0)
    exact = float(data.moments(torch.tensor(END, dtype=torch.float64))[1])
    solver = SOLVERS["exponential-euler-maruyama"]
    laws = [law(data, solver, quadratic(n, END)) for n in (80, 160, 320)]
    assert [m for m, _ in laws] == pytest.approx([0.0] * 3, abs=1e-12)
    assert orders([abs(v - exact) for _, v in laws])[-1] == pytest.approx(1, abs=0.15)


@cache
def strong(name: str, n: int) -> Tensor:
    """Results of n steps to t = 0.1 on the Brownian paths of 128 seeds."""
    sde, seeds = VPSDE(), as_seeds(range(128), 128)
    mix = GaussianMixture(torch.tensor([[-1.0, 0.3], [0.8, 0.0]]).double(), 0.3, sde=sde)
    process = sde.reverse(mix)
    x1 = sde.prior((128, 2), seeds=seeds, dtype=torch.float64)
    path = BrownianPath(seeds, process.clock, depth=22)
    for step in steps(process, x1, quadratic(n, 0.1), SOLVERS[name], path):
        last = step.x
    return last


@pytest.mark.parametrize("name", ["euler-maruyama", "stochastic-heun", "reverse-diffusion", "sde"])
def test_strong_order_1_on_one_brownian_path(name: str) -> None:
    """Fitted over 4 doublings.

    Single ones are noisy, since a few samples near the ridge dominate the error.
    """
    fine = strong("stochastic-heun", 1000)
    errors = [float((strong(name, n) - fine).square().mean().sqrt()) for n in (20, 320)]
    assert orders(errors)[0] / 4 == pytest.approx(1, abs=0.15), errors


# Bias at 1,000 steps on the quadratic grid, as (shift of the mean in standard deviations, relative
# error of the variance).
LAWS_AT_1000 = {
    "euler-maruyama": (6e-4, 3e-3),
    "ddpm": (1e-6, 1.1e-2),
    "pc": (1e-6, 1.1e-2),  # its predictor is ddpm, and the Langevin step shrinks with the grid
    "reverse-diffusion": (2e-3, 7e-3),
    "stochastic-heun": (5e-6, 1e-5),
}


@pytest.mark.parametrize("name", LAWS_AT_1000)
@pytest.mark.parametrize("variance", [1.6, 0.04])
def test_law_at_1000_steps(name: str, variance: float) -> None:
    """Exact mean and variance of the result, without sampling."""
    data = gaussian(VPSDE(), 0.7, variance)
    mean, var = chain_law(data, SOLVERS[name], make_grid("quadratic", data.sde.reverse(data), 1000))
    shift, relative = LAWS_AT_1000[name]
    assert abs(mean - 0.7) / variance**0.5 < shift
    assert abs(var / variance - 1) < relative


@pytest.mark.parametrize("name", ["euler-maruyama", "ddpm", "pc", "reverse-diffusion"])
def test_samples_at_1000_steps(name: str) -> None:
    """Mean and full covariance of 4,096 samples within 4 standard errors.

    The errors are sd / sqrt(n) = 0.016 sd and sqrt((c_ij^2 + c_ii c_jj) / n); the bias at 1,000
    steps is less than half of them (above).
    """
    n, mean = 4096, torch.tensor([1.0, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    data = Gaussian(mean, covariance, sde=VPSDE())
    x1 = data.sde.prior((n, 2), seeds=range(n))
    x = solve(data.sde.reverse(data), x1, solver=name, steps=1000, grid="quadratic", seeds=range(n)).x.double()
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diag() / n).sqrt()).all()
    found = (x - mean).T @ (x - mean) / n
    error = ((covariance**2 + covariance.diag()[:, None] * covariance.diag()) / n).sqrt()
    assert ((found - covariance).abs() < 4 * error).all(), (found - covariance) / error


@pytest.mark.parametrize("name", ["euler-maruyama", "stochastic-heun"])
def test_noise_that_depends_on_x_is_ito(name: str) -> None:
    """Dx = x dw from 1.

    E x(1/4) = 1 for Ito, e^(1/8) = 1.13 for Stratonovich; standard error 0.0053 / sqrt 2.
    """
    n = 20_000
    equation = Equation(lambda x, t: torch.zeros_like(x), lambda x, t: x)
    x = solve(equation, torch.ones(n, 1), solver=name, grid=torch.linspace(0, 0.25, 21), seeds=range(n)).x
    assert float(x.mean()) == pytest.approx(1, abs=4 * (0.284 / n) ** 0.5)


@pytest.mark.parametrize("sde", [CosineVPSDE(), Flow()])
@pytest.mark.parametrize("name", ["euler-maruyama", "stochastic-heun", "reverse-diffusion", "pc", "sde"])
def test_pure_noise_is_a_start(name: str, sde: SDE) -> None:
    """Alpha(1) = 0: the law is right, and one step returns the mean of the data."""
    data = gaussian(sde)
    mean, variance = law(data, SOLVERS[name], torch.linspace(1, 0, 101, dtype=torch.float64), draws=3)
    assert mean == pytest.approx(1.5, abs=0.05)
    assert variance == pytest.approx(0.25, rel=0.1)
    assert law(data, SOLVERS[name], torch.tensor([1.0, 0.0]).double()) == pytest.approx((1.5, 0))


def test_euler_is_exact_on_a_straight_path_and_halves_its_error_with_the_step() -> None:
    decay = Equation(lambda x, t: -x)
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(float(solve(decay, x, solver="euler", grid=torch.linspace(0, 1, n + 1)).x) - 0.36787944117144233)
        for n in (40, 80, 160)
    ]
    assert orders(errors)[-1] == pytest.approx(1, abs=0.02)
    dirac = Gaussian(torch.tensor([3.0]), torch.tensor([0.0]), sde=Flow())
    out = solve(dirac.sde.probability_flow(dirac), x, solver="euler", grid=[1.0, 0.7, 0.2])
    assert float(out.x) == pytest.approx(0.8 * 3 + 0.2, abs=1e-12)


@pytest.mark.parametrize(
    "name",
    ["euler-maruyama", "stochastic-heun", "reverse-diffusion", "sde", "exponential-euler-maruyama"],
)
def test_evaluations_are_counted_and_never_exceed_the_budget(name: str) -> None:
    data = gaussian(VPSDE())
    x = torch.zeros(1, 1)
    for nfe in range(1, 51):
        out = solve(data.sde.reverse(data), x, solver=name, nfe=nfe)
        solver = SOLVERS[name]
        assert int(out.nfe) == solver.evaluations(len(out.times) - 1) <= nfe < solver.evaluations(len(out.times))
    assert out.x.dtype == torch.float32


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), Flow()])
@pytest.mark.parametrize("name", ["euler-maruyama", "stochastic-heun", "reverse-diffusion", "pc", "sde"])
def test_a_sample_does_not_depend_on_its_batch(name: str, sde: SDE) -> None:
    mix = GaussianMixture(torch.tensor([[-1.0, 0.3], [0.8, 0.0]]), 0.3, sde=sde)

    def run(index: range) -> Tensor:
        x1 = sde.prior((len(index), 2), seeds=index)
        grid = [1.0, 0.83, 0.6, 0.41, 0.2, 0.04, 0.0]
        return solve(sde.reverse(mix), x1, solver=name, grid=grid, seeds=index).x

    together = run(range(64))
    assert together.isfinite().all()
    assert torch.allclose(together[:7], run(range(7)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(together[40:41], run(range(40, 41)), rtol=1e-4, atol=1e-5)
