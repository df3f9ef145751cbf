from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import EDM, VPSDE, CosineVPSDE
from solvers import ReverseProcess, solve
from solvers.diffusion.ipndm import ADAMS, IPNDM
from solvers.exponential.adams import ExponentialAdams

MIXTURE = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]], dtype=torch.float64)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_the_weights_integrate_polynomials(p: int) -> None:
    # Over [0, 1] from values at 0, -1, -2, ...: exact up to degree p - 1.
    for degree in range(p):
        total = sum(c * (-float(j)) ** degree for j, c in enumerate(ADAMS[p - 1]))
        assert total == pytest.approx(1 / (degree + 1), rel=1e-14)


def test_exact_for_a_cubic_in_rho_on_equal_steps() -> None:
    sde = EDM(sigma_max=8.0)

    def model(x: Tensor, t: Tensor) -> Tensor:
        rho = 8 * t.reshape(-1, 1)
        return x - rho * (1 - rho + 0.2 * rho**2 - 0.05 * rho**3)

    times = torch.linspace(1, 0.25, 7, dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)
    out = solve(ReverseProcess(model, sde), x, solver="ipndm", grid=times, trajectory=True)
    assert out.trajectory is not None
    integral = lambda r: r - r**2 / 2 + 0.2 * r**3 / 3 - 0.05 * r**4 / 4  # noqa: E731
    for i in (3, 4, 5):  # four values are known from the fourth step on
        exact = integral(8 * times[i + 1]) - integral(8 * times[i])
        assert float(out.trajectory[i + 1] - out.trajectory[i]) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_on_equal_steps_in_rho_it_is_the_variable_step_form(p: int) -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, 0.5, sde=sde))
    rho = torch.linspace(6, 0.2, 13, dtype=torch.float64)
    grid = sde.time(-rho.log())
    x = 5 * sde.prior((4, 2), dtype=torch.float64)
    fixed = solve(ode, x, solver=IPNDM(p), grid=grid).x
    variable = solve(ode, x, solver=ExponentialAdams(p, form="noise", variable="rho"), grid=grid).x
    assert torch.allclose(fixed, variable, rtol=1e-10)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_order_is_2_on_other_grids(p: int) -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, 0.5, sde=sde))
    x = sde.prior((8, 2), dtype=torch.float64)

    def end(solver: IPNDM | ExponentialAdams, n: int) -> Tensor:
        grid = torch.linspace(1, 0.05**0.5, n + 1, dtype=torch.float64) ** 2
        grid[-1] = 0.05
        return solve(ode, x, solver=solver, grid=grid).x

    truth = end(ExponentialAdams(3, corrector=True), 640)
    errors = [float((end(IPNDM(p), n) - truth).norm()) for n in (40, 160)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(IPNDM(p).order, abs=0.15)


def test_one_value_is_ddim_and_pure_noise_is_a_start() -> None:
    for sde in (VPSDE(), CosineVPSDE()):
        ode = sde.probability_flow(GaussianMixture(MIXTURE, 0.5, sde=sde))
        x = sde.prior((4, 2), dtype=torch.float64)
        assert torch.allclose(
            solve(ode, x, solver=IPNDM(1), nfe=9).x,
            solve(ode, x, solver="ddim", nfe=9).x,
            rtol=1e-10,
        )
        many = solve(ode, x, solver="ipndm", nfe=200).x
        assert torch.allclose(many, solve(ode, x, solver="pf-ode", nfe=200).x, atol=5e-3)


def test_values_are_checked() -> None:
    with pytest.raises(ValueError, match="1 to 4 values; got values=5"):
        IPNDM(5)
