"""The exponential engine: weights to 30 digits, polynomial exactness, published formulas, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import mpmath
import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import SOLVERS, ReverseProcess, make_grid, solve
from solvers.brownian_path import BrownianPath, depth_for
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.forms import FORMS, VARIABLES
from solvers.noise import as_seeds
from solvers.noise_clock import regular_clock

SDE_VP = VPSDE()


def scalar(t: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """(alpha, sigma, lambda) of the VP path at 30 digits, from its definition."""
    t = mpmath.mpf(t)
    alpha = mpmath.exp(-(mpmath.mpf(0.1) * t + mpmath.mpf(19.9) * t**2 / 2) / 2)
    sigma = mpmath.sqrt(1 - alpha**2)
    return alpha, sigma, mpmath.log(alpha / sigma)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("tau", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("times", [(0.9, 0.8, 0.65, 0.4), (0.50003, 0.50002, 0.50001, 0.5), (0.99, 0.7, 0.3, 0.002)])
def test_weights_are_the_integrals_to_rounding(form: str, tau: float, times: tuple[float, ...]) -> None:
    """Third-order predictor and corrector weights against mpmath quadrature of the variation of constants."""
    solver = ExponentialAdams(3, form=form, corrector=True, sde=True)
    grid = (*times, times[-1] * 0.9)
    planned = solver.plan(SDE_VP, tau, grid)[2]
    with mpmath.workdps(25):
        nodes = [scalar(t) for t in times]
        lam = [n[2] for n in nodes]
        (a_t, s_t, l_t), (a_s, s_s, l_s) = nodes[2], nodes[3]
        big = 1 + mpmath.mpf(tau) ** 2

        def weight(used: list[int], j: int) -> mpmath.mpf:
            def integrand(x: mpmath.mpf) -> mpmath.mpf:
                basis = mpmath.mpf(1)
                for k in used:
                    if k != j:
                        basis *= (x - lam[k]) / (lam[j] - lam[k])
                if form == "data":  # alpha_s int (1 + tau^2) e^{-(1+tau^2)(lambda_s - x)} L dx
                    return a_s * big * mpmath.exp(-big * (l_s - x)) * basis
                return -a_s * big * mpmath.exp(-x) * basis

            return mpmath.quad(integrand, mpmath.linspace(l_t, l_s, 5))

        for update, used in ((planned.predictor, [2, 1, 0]), (planned.corrector, [3, 2, 1, 0])):
            assert update is not None
            true = [float(weight(used, j)) for j in used]
            assert update.weights == pytest.approx(true, rel=2e-9, abs=3e-13 * max(map(abs, true)))
        h = l_s - l_t
        if form == "data":
            decay = s_s / s_t * mpmath.exp(-(mpmath.mpf(tau) ** 2) * h)
            noise = s_s * mpmath.sqrt(1 - mpmath.exp(-2 * mpmath.mpf(tau) ** 2 * h))
        else:
            decay = a_s / a_t
            noise = tau * a_s * mpmath.sqrt((s_t / a_t) ** 2 - (s_s / a_s) ** 2)
        assert planned.predictor.decay == pytest.approx(float(decay), rel=1e-12)
        assert planned.predictor.noise == pytest.approx(float(noise), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_predictor_is_exact_for_polynomials_below_its_order(variable: str, order: int) -> None:
    """With D a polynomial of degree p - 1 in the variable, a step with full history has no error at all."""
    sde = SDE_VP

    def psi(t: Tensor) -> Tensor:
        alpha, sigma = sde(t)[:2]
        rho = sigma / alpha
        return {"lambda": -rho.log(), "rho": rho, "angle": rho.atan(), "time": regular_clock(1 / rho)}[variable]

    def denoised(t: Tensor) -> Tensor:
        return sum((0.3 * psi(t)) ** k for k in range(order))  # type: ignore[return-value]

    process = ReverseProcess(lambda x, t: denoised(t)[:, None].expand_as(x), sde)
    solver = ExponentialAdams(order, variable=variable)
    times = torch.tensor([0.8, 0.72, 0.66, 0.6, 0.5, 0.42], dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)
    run = solve(process, x, solver=solver, grid=times, trajectory=True)
    assert run.trajectory is not None
    for i in range(order - 1, len(times) - 1):
        with mpmath.workdps(20):
            (_, s_t, l_t), (a_s, s_s, l_s) = scalar(float(times[i])), scalar(float(times[i + 1]))

            def integrand(lam: mpmath.mpf, a_s: mpmath.mpf = a_s, l_s: mpmath.mpf = l_s) -> mpmath.mpf:
                t = sde.time(float(lam))
                return a_s * mpmath.exp(lam - l_s) * float(denoised(t))

            exact = s_s / s_t * float(run.trajectory[i]) + mpmath.quad(integrand, mpmath.linspace(l_t, l_s, 5))
        assert float(run.trajectory[i + 1]) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("corrector", [False, True])
def test_order_one_is_ddim_in_data_and_noise_form(form: str, variable: str, corrector: bool) -> None:
    exact = GaussianMixture(torch.tensor([[-1.0], [0.7]], dtype=torch.float64), 0.2, sde=SDE_VP)
    x1 = SDE_VP.prior((8, 1), dtype=torch.float64)
    ode = SDE_VP.probability_flow(exact)
    run = solve(ode, x1, solver=ExponentialAdams(1, form=form, variable=variable, corrector=corrector), steps=6)
    ddim = solve(ode, x1, solver="ddim", grid=run.times)
    if form == "velocity" or corrector:
        assert float((run.x - ddim.x).abs().max()) > 1e-3
    else:
        torch.testing.assert_close(run.x, ddim.x, rtol=1e-12, atol=1e-12)


def test_velocity_form_is_exact_for_gaussian_data_in_any_number_of_steps() -> None:
    exact = Gaussian(torch.zeros(3), torch.full((3,), 0.36, dtype=torch.float64), sde=SDE_VP)
    x1 = SDE_VP.prior((5, 3), dtype=torch.float64)
    solver = ExponentialAdams(2, form="velocity", variable="angle", sigma_data=0.6)
    for grid in ([1.0, 0.01], [1.0, 0.5, 0.3, 0.01]):
        run = solve(SDE_VP.probability_flow(exact), x1, solver=solver, grid=grid)
        torch.testing.assert_close(run.x, exact.flow(x1, 1.0, 0.01), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_dpm_solver_pp_2m_is_its_paper(tau: float) -> None:
    """Lu et al. 2022b, algorithm 2 (and eq. 19 for the SDE), written out for three steps by hand."""
    name = "dpm++2m" if tau == 0 else "dpm++2m-sde"
    sde, times = SDE_VP, [0.9, 0.7, 0.45, 0.3]

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t[:, None]

    x = torch.tensor([[0.4]], dtype=torch.float64)
    process = ReverseProcess(model, sde, tau)
    run = solve(process, x, solver=name, grid=times, seeds=[3])
    path = BrownianPath(
        as_seeds([3], 1), process.clock, depth_for(process.clock, torch.tensor(times, dtype=torch.float64))
    )
    value, history, last_h = 0.4, [], None
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = ((float(c) for c in sde(u)[:2]) for u in (t, s))
        h = math.log(a_s / s_s) - math.log(a_t / s_t)
        history.append(math.sin(3 * value) + t)
        d = history[-1]
        if last_h is not None:
            r = last_h / h
            d = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
        xi = float(path.increment(x, *torch.tensor([t, s], dtype=torch.float64))) if tau else 0.0
        value = (
            s_s / s_t * math.exp(-h * tau) * value
            + a_s * (1 - math.exp(-h * (1 + tau))) * d
            + s_s * math.sqrt(1 - math.exp(-2 * h * tau)) * xi
        )
        last_h = h
    assert float(run.x) == pytest.approx(value, rel=1e-10)


def test_dpm_solver_pp_3m_as_published_has_order_two_and_ours_three() -> None:
    assert SOLVERS["dpm++3m"].order == 3
    published = ExponentialAdams(3, weights="dpm++3m")
    assert published.order == 2
    slopes = []
    for solver in (published, SOLVERS["dpm++3m"]):
        errors = [_mixture_error(solver, n) for n in (80, 160, 320)]
        slopes.append(math.log2(errors[-2] / errors[-1]))
    assert abs(slopes[0] - 2) < 0.15 and abs(slopes[1] - 3) < 0.15, slopes


def test_dpm_solver_pp_3m_published_weights_by_hand() -> None:
    """The published D_0, D_1, D_2 combination, with phi_3 of the second difference as in the reference text."""
    times = (0.8, 0.65, 0.5, 0.4)
    planned = ExponentialAdams(3, weights="dpm++3m").plan(SDE_VP, 0.0, times)[2].predictor
    lam = [float(scalar(t)[2]) for t in times]
    h, h0, h1 = lam[3] - lam[2], lam[2] - lam[1], lam[1] - lam[0]
    r0, r1 = h0 / h, h1 / h
    alpha_s = float(SDE_VP(times[3]).alpha)

    def combine(m0: float, m1: float, m2: float) -> float:
        d10, d11 = (m0 - m1) / r0, (m1 - m2) / r1
        d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
        d2 = (d10 - d11) / (r0 + r1)
        e = math.expm1(-h)
        return -alpha_s * e * m0 + alpha_s * (e / h + 1) * d1 - alpha_s * ((e + h) / h**2 - 0.5) * d2

    by_hand = (combine(1, 0, 0), combine(0, 1, 0), combine(0, 0, 1))
    assert planned.weights == pytest.approx(by_hand, rel=1e-10)


@pytest.mark.parametrize(("weights", "b"), [("bh1", lambda h: h), ("bh2", lambda h: -math.expm1(-h))])
def test_unipc_two_node_weights_use_the_stated_b(weights: str, b: object) -> None:
    times = (0.8, 0.6, 0.45, 0.3)
    solver = ExponentialAdams(2, corrector=True, weights=weights)
    first, second, _ = solver.plan(SDE_VP, 0.0, times)
    lam = [float(scalar(t)[2]) for t in times]
    alpha_1, alpha_2 = (float(SDE_VP(t).alpha) for t in times[1:3])
    h, before = lam[2] - lam[1], lam[1] - lam[0]
    slope = alpha_2 * b(h) / 2 / (-before / h)  # type: ignore[operator]
    assert second.predictor.weights == pytest.approx((-alpha_2 * math.expm1(-h) - slope, slope), rel=1e-10)
    slope = alpha_1 * b(before) / 2  # type: ignore[operator]
    assert first.corrector is not None
    assert first.corrector.weights == pytest.approx((slope, -alpha_1 * math.expm1(-before) - slope), rel=1e-10)


def test_zero_noise_is_the_ode_member_bit_for_bit() -> None:
    exact = GaussianMixture(torch.tensor([[-1.0], [0.7]], dtype=torch.float64), 0.2, sde=SDE_VP)
    x1 = SDE_VP.prior((8, 1), dtype=torch.float64)
    for order, weights in ((2, "bh2"), (3, "exact")):
        ode = solve(SDE_VP.probability_flow(exact), x1, solver=ExponentialAdams(order, weights=weights), nfe=9)
        sde = solve(SDE_VP.reverse(exact, 0.0), x1, solver=ExponentialAdams(order, weights=weights, sde=True), nfe=9)
        assert torch.equal(ode.x, sde.x)


def test_all_paths_with_the_same_noise_levels_give_the_same_sample() -> None:
    """z = x / alpha follows one equation in rho: the strongest check of every path's coefficients."""
    means = torch.tensor([[-1.0, 0.2], [0.7, 0.5]], dtype=torch.float64)
    lam = torch.linspace(-2, 3, 12, dtype=torch.float64)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8
    results = []
    for sde in (VPSDE(), SubVPSDE(), VESDE(), EDM(), Flow(), CosineVPSDE()):
        times = sde.time(lam)
        exact = GaussianMixture(means, 0.2, sde=sde)
        x = z * sde(times[0]).alpha
        run = solve(sde.probability_flow(exact), x, solver="unipc", grid=times)
        results.append(run.x / sde(times[-1]).alpha)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [CosineVPSDE(), Flow()], ids=repr)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_pure_noise_at_the_start_is_finite_and_converges(sde: SDE, form: str, steps: int) -> None:
    exact = GaussianMixture(torch.tensor([[-1.0], [0.7]], dtype=torch.float64), 0.2, sde=sde)
    x1 = sde.prior((8, 1), dtype=torch.float64)
    run = solve(sde.probability_flow(exact), x1, solver=ExponentialAdams(3, form=form, corrector=True), steps=steps)
    assert bool(run.x.isfinite().all())
    if steps == 16:
        fine = solve(sde.probability_flow(exact), x1, solver=ExponentialAdams(3), steps=200)
        assert float((run.x - fine.x).abs().median()) < 0.01


def test_the_plan_prints_its_orders() -> None:
    times = tuple(make_grid("power", SDE_VP.probability_flow(_mixture()), 7).tolist())
    assert [p.order for p in ExponentialAdams(3).plan(SDE_VP, 0.0, times)] == [1, 2, 3, 3, 3, 3]
    final = ExponentialAdams(3, lower_order_final=True)
    assert [p.order for p in final.plan(SDE_VP, 0.0, times)] == [1, 2, 3, 3, 3, 2]
    assert final.order == 2


def test_a_step_outside_its_plan_is_refused() -> None:
    ode = SDE_VP.probability_flow(_mixture())
    times = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    solver = ExponentialAdams(2)
    state = solver.init(ode, times)
    with pytest.raises(ValueError, match=r"planned from t = 1 to 0.5, but asked from 1 to 0.3"):
        solver.step(ode, torch.zeros(1, 1).double(), times[0], torch.tensor(0.3).double(), state, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "eps"}, "unknown form 'eps'"),
        ({"variable": "t"}, "unknown polynomial variable"),
        ({"predictor_order": 0}, "1 to 6"),
        ({"weights": "bh3"}, "did you mean 'bh"),
        ({"weights": "bh2", "variable": "rho"}, "lambda"),
        ({"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExponentialAdams(**settings)  # type: ignore[arg-type]


def _mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.0, -1.2]], dtype=torch.float64)
    return GaussianMixture(means, 0.3, sde=SDE_VP)


def _mixture_error(solver: ExponentialAdams, n: int) -> float:
    ode = SDE_VP.probability_flow(_mixture())
    x1 = SDE_VP.prior((8, 2), dtype=torch.float64)
    grids = [torch.linspace(1, 0.3, k + 1, dtype=torch.float64) ** 2 for k in (n, 1280)]
    fine = solve(ode, x1, solver=ExponentialAdams(3, corrector=True), grid=grids[1])
    return float((solve(ode, x1, solver=solver, grid=grids[0]).x - fine.x).norm())


@pytest.mark.parametrize("path", [SDE_VP, Flow(), EDM(20.0)], ids=repr)
def test_the_last_steps_of_sde_are_quiet(path: SDE) -> None:
    """No noise where rho < 8 / N, as much as before above, and none is left out as N grows."""
    solver = SOLVERS["sde"]
    assert isinstance(solver, ExponentialAdams)
    process = path.reverse(GaussianMixture(torch.zeros(1, 1), std=0.5, sde=path))
    for n in (5, 10, 40):
        times = tuple(make_grid("quadratic", process, n).tolist())
        alpha, sigma = path.marginal(torch.tensor(times, dtype=torch.float64))
        loud = (sigma >= 8 / n * alpha).tolist()
        steps = solver.plan(path.marginal, 1.0, times)
        everywhere = replace(solver, quiet_below=0.0).plan(path.marginal, 1.0, times)
        assert [bool(step.predictor.noise) for step in steps] == loud[: len(steps)]
        assert all(a == b for a, b, noise in zip(steps, everywhere, loud, strict=False) if noise)
        assert not all(loud[: len(steps)])


@pytest.mark.parametrize("path", [SDE_VP, Flow()], ids=repr)
def test_ten_steps_of_sde_keep_the_width_of_narrow_components(path: SDE) -> None:
    """With noise in every step they are 1.4 and 1.6 times as wide."""
    means = 0.6 * torch.randn(30, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = GaussianMixture(means, std=0.1, sde=path)
    x1 = path.prior((400, 24), seeds=range(400), dtype=torch.float64)

    def width(solver: ExponentialAdams) -> float:
        x = solve(path.reverse(model), x1, solver=solver, nfe=10, seeds=range(400)).x
        return float(torch.cdist(x, means).min(1).values.square().mean().div(24).sqrt()) / 0.1

    solver = SOLVERS["sde"]
    assert isinstance(solver, ExponentialAdams)
    assert abs(width(solver) - 1) < 0.2 < 0.35 < width(replace(solver, quiet_below=0.0)) - 1
