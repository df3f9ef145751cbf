from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import EDM, VPSDE, CosineVPSDE
from solvers import SOLVERS, ReverseProcess, make_grid, solve
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.runge_kutta import SingleStep

MIXTURE = torch.tensor([[1.0, 0.5], [-0.8, 0.9], [0.2, -1.1]], dtype=torch.float64)


def lambda_grid(sde: VPSDE, fractions: list[float], low: float = -1.0, high: float = 0.0) -> Tensor:
    return sde.time(low + (high - low) * torch.tensor(fractions, dtype=torch.float64))


def linear_model(x: Tensor, t: Tensor) -> Tensor:
    return 0.3 * x + torch.cos(2 * t).reshape(-1, 1)


def by_the_paper(order: int, form: str, sde: VPSDE, times: Tensor) -> float:
    """One step of DPM-Solver-2/3 or ++2S/3S from x = 0.7, in closed form and 40 digits."""
    mp.mp.dps = 40

    def scales(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        total = t * (mp.mpf("0.1") + t * (mp.mpf(20) - mp.mpf("0.1")) / 2)
        return mp.exp(-total / 2), mp.sqrt(1 - mp.exp(-total))

    t = [mp.mpf(float(c)) for c in times]
    alpha, sigma = zip(*map(scales, t), strict=True)
    lam = [mp.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    h = lam[-1] - lam[0]
    r1, r2 = (lam[1] - lam[0]) / h, (lam[2] - lam[0]) / h if order == 3 else None

    def value(x: mp.mpf, k: int) -> mp.mpf:
        x0 = mp.mpf("0.3") * x + mp.cos(2 * t[k])
        return x0 if form == "data" else (x - alpha[k] * x0) / sigma[k]

    def advance(k: int, h: mp.mpf, first: mp.mpf, change: mp.mpf) -> mp.mpf:
        """Constant part, and a change that grows linearly, weighted by phi_2 h of its slope."""
        if form == "noise":
            phi = mp.expm1(h) / h - 1
            return alpha[k] / alpha[0] * x - sigma[k] * (mp.expm1(h) * first + phi * change)
        phi = mp.expm1(-h) / h + 1
        return sigma[k] / sigma[0] * x - alpha[k] * (mp.expm1(-h) * first - phi * change)

    x = mp.mpf("0.7")
    m0 = value(x, 0)
    m1 = value(advance(1, r1 * h, m0, 0), 1)
    if order == 2:
        mean = m0 + (m1 - m0) / (2 * r1)
        return float(advance(2, h, mean, 0))
    m2 = value(advance(2, r2 * h, m0, r2 / r1 * (m1 - m0)), 2)
    return float(advance(3, h, m0, (m2 - m0) / r2))


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_one_published_step_equals_the_paper(order: int, form: str) -> None:
    sde = VPSDE()
    times = lambda_grid(sde, [k / order for k in range(order + 1)])
    ode = ReverseProcess(linear_model, sde)
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    step = solve(ode, x, solver=SingleStep(order, form, published=True), grid=times)
    assert float(step.x) == pytest.approx(by_the_paper(order, form, sde, times), rel=1e-12)
    # The weights through all nodes differ from the paper's by the size of the error of the step.
    exact = solve(ode, x, solver=SingleStep(order, form), grid=times)
    assert 1e-5 < abs(float(exact.x - step.x)) < 0.1


@pytest.mark.parametrize("fractions", [[0.0, 0.2, 0.6, 1.0], [0.0, 1 / 3, 2 / 3, 1.0], [0, 0.4, 0.6, 1]])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_a_step_is_exact_for_a_polynomial_in_lambda(form: str, fractions: list[float]) -> None:
    sde = VPSDE()
    times = lambda_grid(sde, fractions)

    def model(x: Tensor, t: Tensor) -> Tensor:
        lam = sde.half_log_snr(t).reshape(-1, 1)
        m = 1 - lam + 0.5 * lam**2
        if form == "data":
            return m
        alpha, sigma = (c.reshape(-1, 1) for c in sde(t)[:2])
        return (x - sigma * m) / alpha

    x = torch.zeros(1, 1, dtype=torch.float64)
    out = solve(ReverseProcess(model, sde), x, solver=SingleStep(3, form), grid=times)
    alpha = float(sde(times[-1]).alpha)
    low, high = (float(sde.half_log_snr(t)) for t in (times[0], times[-1]))
    if form == "data":
        exact = mp.quad(lambda u: mp.exp(u - high) * (1 - u + u**2 / 2), [low, high]) * alpha
    else:
        exact = -alpha * mp.quad(lambda u: mp.exp(-u) * (1 - u + u**2 / 2), [low, high])
    assert float(out.x) == pytest.approx(float(exact), rel=1e-12)


def fitted_order(solver: SingleStep, pattern: list[float] | None = None) -> float:
    """Slope on VP from t = 1 to 0.05, on the quadratic grid or a pattern of lambda steps."""
    sde = VPSDE()
    exact = GaussianMixture(MIXTURE, 0.5, sde=sde)
    ode, x = sde.probability_flow(exact), sde.prior((8, 2), dtype=torch.float64)

    def end(solver: object, n: int) -> Tensor:
        if pattern is None:
            grid = torch.linspace(1, 0.05**0.5, n + 1, dtype=torch.float64) ** 2
        else:
            widths = torch.tensor(pattern, dtype=torch.float64).repeat(n // len(pattern))
            share = torch.cat([torch.zeros(1), widths.cumsum(0) / widths.sum()])
            low, high = (float(sde.half_log_snr(t)) for t in (1.0, 0.05))
            grid = sde.time(low + (high - low) * share)
        grid[0], grid[-1] = 1.0, 0.05
        return solve(ode, x, solver=solver, grid=grid).x  # type: ignore[arg-type]

    truth = end(ExponentialAdams(4, corrector=True), 768)
    errors = [float((end(solver, n) - truth).norm()) for n in (48, 96, 192)]
    return math.log2(errors[0] / errors[2]) / 2


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_order(order: int, form: str) -> None:
    assert fitted_order(SingleStep(order, form)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("form", ["data", "noise"])
def test_order_3_needs_no_even_nodes(form: str) -> None:
    assert fitted_order(SingleStep(3, form), [0.8, 1.0, 1.4]) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_plan_covers_every_interval_once(order: int) -> None:
    for n in range(1, 51):
        times = make_grid("quadratic", ReverseProcess(linear_model, VPSDE()), n)
        plan = SingleStep(order).plan(VPSDE(), tuple(times.tolist()))
        assert [(stage.t, stage.s) for stage in plan] == list(
            zip(times[:-2].tolist(), times[1:-1].tolist(), strict=True)
        )
        assert sum(stage.order for stage in plan if stage.k == 0) == n - 1


def test_even_nodes_are_of_full_order_but_for_the_remainder() -> None:
    sde = VPSDE()
    for n, expected in ((6, [3, 3]), (7, [2, 2, 3]), (8, [2, 3, 3]), (2, [2]), (1, [1])):
        plan = SingleStep(3).plan(sde, tuple(lambda_grid(sde, torch.linspace(0, 1, n + 1).tolist()).tolist()))
        assert [stage.order for stage in plan if stage.k == 0] == expected


def test_uneven_nodes_take_lower_orders() -> None:
    sde = VPSDE()
    times = lambda_grid(sde, [0, 0.01, 0.5, 1.0, 1.3, 1.6, 1.9])
    plan = SingleStep(3).plan(sde, tuple(times.tolist()))
    assert [stage.order for stage in plan if stage.k == 0] == [1, 2, 3]


@pytest.mark.parametrize("name", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s"])
def test_order_1_at_pure_noise_and_budget_2_is_ddim(name: str) -> None:
    sde = CosineVPSDE()
    ode = sde.probability_flow(GaussianMixture(MIXTURE, 0.5, sde=sde))
    x = sde.prior((4, 2), dtype=torch.float64)
    a = solve(ode, x, solver=name, nfe=2, grid="quadratic").x
    assert torch.allclose(a, solve(ode, x, solver="ddim", nfe=2, grid="quadratic").x, rtol=1e-13)


@pytest.mark.parametrize("name", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s"])
def test_encoding_and_decoding_return(name: str) -> None:
    sde = EDM(sigma_max=20.0)
    ode = sde.probability_flow(GaussianMixture(MIXTURE, 0.5, sde=sde))
    x = torch.tensor([[0.3, 0.2], [1.0, -0.4]], dtype=torch.float64)
    grid = torch.linspace(0.1**0.5, 1, 301, dtype=torch.float64) ** 2
    back = solve(ode, solve(ode, x, solver=name, grid=grid).x, solver=name, grid=grid.flip(0)).x
    assert float((back - x).abs().max()) < (2e-6 if SOLVERS[name].order == 3 else 3e-4)


def test_a_run_on_another_grid_is_refused() -> None:
    ode = ReverseProcess(linear_model, VPSDE())
    solver, t = SingleStep(), torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"planned from t = 0\.9 to 0\.6"):
        solver.step(ode, torch.zeros(1, 1), t[0], t[2], solver.init(ode, t), None)  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="did you mean 'noise'"):
        SingleStep(form="nois")
    with pytest.raises(ValueError, match="max_order must be 1, 2 or 3; got 4"):
        SingleStep(4)
