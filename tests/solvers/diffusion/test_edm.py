from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VPSDE, CosineVPSDE
from solvers import SOLVERS, ReverseProcess, Solver, solve, steps
from solvers.diffusion.edm import EDMHeun, add_noise, heun_step
from solvers.diffusion.restart import Restart, RestartInterval

STD = 0.5
MIXTURE = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]], dtype=torch.float64)


class UnitVectors:
    """Noise for a batch that holds the coefficients of x_1 and of every draw: draw k is e_k."""

    def __init__(self) -> None:
        self.draws = 0

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.draws += 1
        out = torch.zeros_like(x)
        out[self.draws] = 1
        return out

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        return self.increment(x, t, t)

    def rows(self, index: Tensor) -> UnitVectors:
        return self


def final_std(sde: SDE, solver: Solver, times: Tensor, inflate: float = 1.0) -> tuple[float, float]:
    """Standard deviation at the end for Gaussian data, without sampling, and the exact one."""
    exact = Gaussian(torch.zeros(1), torch.tensor([STD**2]), sde=sde)
    x = torch.zeros(1200, 1, dtype=torch.float64)
    x[0] = inflate * float(exact.moments(times[0])[1]) ** 0.5
    for step in steps(sde.probability_flow(exact), x, times, solver, UnitVectors()):  # type: ignore[arg-type]
        x = step.x
    return float(x.square().sum()) ** 0.5, float(exact.moments(times[-1])[1]) ** 0.5


def grid(n: int, end: float = 0.05) -> Tensor:
    times = torch.linspace(1, end**0.5, n + 1, dtype=torch.float64) ** 2
    times[-1] = end
    return times


def slope(error: Callable[[int], float], ns: tuple[int, ...]) -> float:
    return math.log(error(ns[0]) / error(ns[-1])) / math.log(ns[-1] / ns[0])


def test_heun_equals_the_textbook_step() -> None:
    sde = EDM(sigma_max=10.0)
    ode = ReverseProcess(lambda x, t: torch.sin(x) * t.reshape(-1, 1), sde)
    t, s = torch.tensor([0.4, 0.25], dtype=torch.float64)
    z, rho, rho_next = 1.3, 4.0, 2.5
    slope_t = (z - math.sin(z) * 0.4) / rho
    guess = z + (rho_next - rho) * slope_t
    slope_s = (guess - math.sin(guess) * 0.25) / rho_next
    expected = z + (rho_next - rho) * (slope_t + slope_s) / 2
    got = heun_step(ode, torch.tensor([[z]], dtype=torch.float64), t, s)
    assert float(got) == pytest.approx(expected, rel=1e-14)


def test_paths_with_one_rho_give_one_result() -> None:
    vp, ve = VPSDE(), EDM(sigma_max=80.0)
    rho = torch.tensor([20.0, 5.0, 1.0, 0.2], dtype=torch.float64)
    ends = []
    for sde in (vp, ve):
        ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
        times = sde.time(-rho.log())
        z = torch.tensor([[3.0, -7.0]], dtype=torch.float64)
        end = solve(ode, z * float(sde(times[0]).alpha), solver="edm", grid=times).x
        ends.append(end / sde(times[-1]).alpha)
    assert torch.allclose(ends[0], ends[1], rtol=1e-10)


def test_the_first_step_from_pure_noise_converges() -> None:
    sde = CosineVPSDE()
    error = lambda n: abs(float.__sub__(*final_std(sde, EDMHeun(), grid(n))))  # noqa: E731
    assert slope(error, (80, 320)) > 1.6
    assert error(320) < 1e-4


def test_churn_where_there_is_none_is_heun_bit_for_bit() -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
    x = sde.prior((5, 2))
    plain = solve(ode, x, solver="edm", nfe=19).x
    assert torch.equal(solve(ode, x, solver=EDMHeun(s_churn=0.0, s_noise=1.007), nfe=19).x, plain)
    outside = EDMHeun(s_churn=40.0, s_min=1e6, s_max=1e9)
    assert torch.equal(solve(ode, x, solver=outside, nfe=19).x, plain)
    assert not torch.equal(solve(ode, x, solver=EDMHeun(s_churn=40.0), nfe=19).x, plain)


def test_churn_adds_the_variance_of_the_forward_process() -> None:
    sde = VPSDE()
    exact = Gaussian(torch.zeros(1), torch.tensor([STD**2]), sde=sde)
    t, s = torch.tensor([0.2, 0.3], dtype=torch.float64)
    ode = sde.probability_flow(exact)
    start = torch.tensor([[float(exact.moments(t)[1]) ** 0.5], [0.0]], dtype=torch.float64)
    out = add_noise(ode, start, t, s, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert float(out.square().sum()) == pytest.approx(float(exact.moments(s)[1]), rel=1e-13)


@pytest.mark.parametrize("sde", [VPSDE(), EDM(sigma_max=20.0)], ids=["vp", "edm"])
@pytest.mark.parametrize(
    "solver",
    [
        EDMHeun(),
        EDMHeun(5.0),
        EDMHeun(5.0, 0.01, 1.0),
        Restart(),
        Restart((RestartInterval(3, 0.1, 1.0),)),
    ],
    ids=["heun", "churn", "churn-range", "restart", "restart-wide"],
)
def test_weak_order_is_2(solver: Solver, sde: SDE) -> None:
    error = lambda n: abs(float.__sub__(*final_std(sde, solver, grid(n))))  # noqa: E731
    assert slope(error, (36, 72, 144)) == pytest.approx(2, abs=0.15)


def test_churn_stays_on_the_path_and_within_the_bound() -> None:
    sde = VPSDE()
    seen: list[float] = []
    exact = Gaussian(torch.zeros(1), torch.tensor([STD**2]), sde=sde)

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return exact.denoise(x, t)

    times = torch.tensor([1.0, 0.9999, 0.5, 0.2], dtype=torch.float64)
    solve(ReverseProcess(model, sde), torch.ones(1, 1), solver=EDMHeun(s_churn=1e6), grid=times)
    starts = seen[::2]
    assert starts[0] == 1.0 and max(seen) <= 1.0
    rho = [float(sde(t).sigma / sde(t).alpha) for t in starts]
    assert rho[2] / float(sde(0.5).sigma / sde(0.5).alpha) == pytest.approx(math.sqrt(2), rel=1e-9)


def test_restarts_contract_the_error_as_computed() -> None:
    # A start of twice the spread: each repetition adds noise and scales the variance back.
    sde, low, high = EDM(sigma_max=20.0), 0.06, 0.3
    times = torch.linspace(1, low ** (1 / 7) / 20 ** (1 / 7), 301, dtype=torch.float64) ** 7
    plain, exact = final_std(sde, EDMHeun(), times, inflate=2.0)
    assert plain == pytest.approx(2 * exact, rel=1e-3)
    variance = plain**2
    for _ in range(3):
        variance = (variance + high**2 - low**2) * (STD**2 + low**2) / (STD**2 + high**2)
    restarted, _ = final_std(sde, Restart((RestartInterval(3, low, high, points=41),)), times, inflate=2.0)
    assert restarted == pytest.approx(variance**0.5, rel=1e-4)


def test_restart_counts() -> None:
    assert Restart().evaluations(18) == 43  # the paper's first setting for CIFAR-10
    many = Restart((RestartInterval(10, 0.06, 0.30, points=3), RestartInterval(4, 1.0, 5.0, points=2)))
    assert many.evaluations(18) == 35 + 10 * 4 + 4 * 2
    assert many.evaluations(1) == 1
    assert many.evaluations(18, finish=False) == 36 + 48
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
    x = sde.prior((2, 2))
    for solver in (Restart(), many):
        for n in (1, 14, 15, 20, 21, 42, 43, 44, 83):
            out = solve(ode, x, solver=solver, nfe=n)
            count = solver.evaluations(len(out.times) - 1)
            assert out.nfe.tolist() == [count] * 2 and count <= n < solver.evaluations(len(out.times))


def test_without_repetitions_it_is_heun_bit_for_bit() -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
    x = sde.prior((3, 2))
    for nfe in (5, 15, 31):
        solver = Restart() if nfe < 21 else Restart((RestartInterval(0, 0.06, 0.3),))
        assert torch.equal(solve(ode, x, solver=solver, nfe=nfe).x, solve(ode, x, solver="edm", nfe=nfe).x)
    assert not torch.equal(solve(ode, x, solver="restart", nfe=31).x, solve(ode, x, solver="edm", nfe=31).x)


@pytest.mark.parametrize(
    "solver", [EDMHeun(20.0), Restart((RestartInterval(2, 0.1, 0.5, points=3),))], ids=["churn", "restart"]
)
def test_a_sample_does_not_depend_on_its_batch(solver: Solver) -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
    x = sde.prior((7, 2), dtype=torch.float64)
    whole = solve(ode, x, solver=solver, steps=8, seeds=range(7)).x
    alone = solve(ode, x[4:5], solver=solver, steps=8, seeds=[4]).x
    assert torch.allclose(whole[4:5], alone, rtol=1e-12, atol=1e-12)
    other = solve(ode, x[4:5], solver=solver, steps=8, seeds=[5]).x
    assert not torch.allclose(alone, other, atol=1e-3)


def test_settings_are_checked() -> None:
    for bad in ({"s_churn": -1.0}, {"s_min": 2.0, "s_max": 1.0}, {"s_noise": 0.0}):
        with pytest.raises(ValueError, match="expected s_churn >= 0"):
            EDMHeun(**bad)
    for interval in (
        RestartInterval(2, 0.3, 0.06),
        RestartInterval(-1, 0.1, 0.2),
        RestartInterval(1, 0.1, 0.2, points=1),
    ):
        with pytest.raises(ValueError, match="expected repeats >= 0"):
            Restart((interval,))
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, STD, sde=sde))
    for solver in (EDMHeun(5.0), Restart()):
        with pytest.raises(ValueError, match="the grid increases"):
            solve(ode, torch.zeros(1, 2), solver=solver, grid=[0.1, 0.5, 1.0])
    assert SOLVERS["edm"].stochastic is False


@pytest.mark.parametrize("eta", [0.3, 1.5])
def test_restart_refuses_a_noise_level_that_would_change_nothing(eta: float) -> None:
    model = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    with pytest.raises(ValueError, match=rf"eta = {eta:g} would change nothing"):
        solve(VPSDE().reverse(model, eta), torch.zeros(1, 2), solver="restart", nfe=20)
