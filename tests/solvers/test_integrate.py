"""The loop: budgets, meter, grids, statuses, trajectories, seeds, conditions, and bad input at the door."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, VESDE, VPSDE, Flow
from solvers import SOLVERS, Equation, ReverseProcess, Solver, Step, make_grid, solve, steps
from solvers.noise import Noise
from solvers.problem import Problem, like

SDE = VPSDE()
MEANS = torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.0, -1.2]], dtype=torch.float64)
EXACT = GaussianMixture(MEANS, 0.3, sde=SDE)
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]


def process(name: str) -> ReverseProcess:
    return SDE.reverse(EXACT, float(SOLVERS[name].stochastic))


def prior(n: int) -> Tensor:
    return SDE.prior((n, 2), seeds=range(n), dtype=torch.float64)


class Counting:
    """An independent count: rows of x seen by the model."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return EXACT.denoise(x, t)


@pytest.mark.parametrize("name", FIXED)
def test_nfe_equals_the_formula_and_never_exceeds_the_budget(name: str) -> None:
    solver = SOLVERS[name]
    for budget in range(1, 51):
        if budget < solver.evaluations(1):
            with pytest.raises(ValueError, match="too small"):
                solve(process(name), prior(1), solver=name, nfe=budget)
            continue
        model = Counting()
        run = solve(ReverseProcess(model, SDE, process(name).eta), prior(1), solver=name, nfe=budget)
        n = len(run.times) - 1
        assert model.rows == int(run.nfe) == solver.evaluations(n) <= budget
        assert solver.evaluations(n + 1) > budget


def test_a_guided_pair_counts_twice() -> None:
    model = Counting()
    run = solve(ReverseProcess(model, SDE, cost=2), prior(3), solver="ddim", nfe=9)
    assert model.rows == 4 * 3
    assert run.nfe.tolist() == [8, 8, 8]


def test_steps_is_the_loop_of_solve() -> None:
    ode = process("ddim")
    times = make_grid("karras", ode, 6)
    seen = list(steps(ode, prior(4), times, SOLVERS["ddim"]))
    run = solve(ode, prior(4), solver="ddim", grid="karras", steps=6, trajectory=True)
    assert [float(s.t) for s in seen] == run.times[1:].tolist()
    assert [int(s.nfe[0]) for s in seen] == [1, 2, 3, 4, 5, 6]
    assert run.trajectory is not None and torch.equal(run.trajectory[0], prior(4))
    for step, x in zip(seen, run.trajectory[1:], strict=True):
        assert torch.equal(step.x, x)
    assert torch.equal(run.x, seen[-1].x)


def test_the_last_step_to_zero_is_the_denoised_x_of_every_solver() -> None:
    grid = [1.0, 0.4, 0.1, 0.0]
    for name in FIXED:
        run = solve(process(name), prior(4), solver=name, grid=grid, trajectory=True)
        assert run.trajectory is not None
        before = run.trajectory[-2]
        torch.testing.assert_close(run.x, EXACT.denoise(before, torch.full((4,), 0.1).double()), rtol=1e-6, atol=1e-6)


def test_a_grid_that_stops_before_zero_is_not_finished() -> None:
    run = solve(process("heun"), prior(2), solver="heun", grid=[1.0, 0.5, 0.1])
    assert run.nfe.tolist() == [4, 4]
    full = solve(process("heun"), prior(2), solver="heun", grid=[1.0, 0.5, 0.1, 0.0])
    assert full.nfe.tolist() == [5, 5]


@pytest.mark.parametrize("name", [n for n in FIXED if not SOLVERS[n].stochastic])
def test_encoding_and_decoding_return(name: str) -> None:
    """An increasing grid runs the flow from data to noise; going back returns to the start with the step size."""
    solver = SOLVERS[name]
    ode = process(name)
    data = EXACT.draw(6, seed=1)
    errors = []
    for n in (50, 200):
        grid = torch.linspace(0.2, 0.9, n + 1, dtype=torch.float64)
        there = solve(ode, data, solver=solver, grid=grid).x
        back = solve(ode, there, solver=solver, grid=grid.flip(0)).x
        errors.append(float((back - data).abs().max()))
    assert errors[1] < errors[0] / 2.5 and errors[1] < 0.1, errors


@pytest.mark.parametrize("name", ["ddim", "unipc", "pf-ode", "dpm++3m"])
def test_encoding_may_end_in_pure_noise(name: str) -> None:
    """alpha(1) = 0 on the straight path: the last step up is the ancestral one, finite and standard normal."""
    exact = GaussianMixture(MEANS, 0.3, sde=Flow())
    data = exact.draw(2000, seed=2)
    grid = torch.linspace(0.02, 1, 60, dtype=torch.float64)
    noise = solve(Flow().probability_flow(exact), data, solver=name, grid=grid).x
    assert float(noise.mean().abs()) < 0.1
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_name_the_sample_and_the_time(bad: float) -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        x0 = EXACT.denoise(x, t)
        x0[2] = torch.where(t[2] < 0.5, bad, x0[2])
        return x0

    run = solve(ReverseProcess(broken, SDE), prior(4), solver="ddim", grid=[1.0, 0.7, 0.4, 0.2, 0.0])
    assert run.status == ["ok", "ok", "non_finite", "ok"]
    assert run.failed_at.isnan().tolist() == [True, True, False, True]
    assert float(run.failed_at[2]) == pytest.approx(0.2)  # evaluated at 0.4, lost when 0.2 is reached
    clean = solve(ReverseProcess(EXACT.denoise, SDE), prior(4), solver="ddim", grid=[1.0, 0.7, 0.4, 0.2, 0.0])
    assert torch.equal(run.x[[0, 1, 3]], clean.x[[0, 1, 3]])


@pytest.mark.parametrize("name", ["ddim", "rk45"])
def test_conditions_follow_their_samples(name: str) -> None:
    """Each sample is given its own target, also when finished samples leave an adaptive batch."""
    target = torch.tensor([[1.0, 0.0], [2.0, -5.0], [3.0, 9.0]], dtype=torch.float64)

    def model(x: Tensor, t: Tensor, *, target: Tensor) -> Tensor:
        return target + 0.1 * torch.sin(target * x) * (1 - t[:, None])

    run = solve(ReverseProcess(model, SDE, condition={"target": target}), prior(3), solver=name, nfe=200)
    for k in range(3):
        one = ReverseProcess(model, SDE, condition={"target": target[k : k + 1]})
        alone = solve(one, prior(3)[k : k + 1], solver=name, nfe=200)
        torch.testing.assert_close(alone.x[0], run.x[k], rtol=1e-12, atol=1e-12)
        assert alone.nfe.tolist() == [int(run.nfe[k])]


def test_float32_and_images_keep_dtype_and_shape() -> None:
    images = GaussianMixture(torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 0.3, sde=SDE)
    x1 = SDE.prior((5, 1, 4, 4), seeds=range(5))
    for name, solver in SOLVERS.items():
        run = solve(SDE.reverse(images, float(solver.stochastic)), x1, solver=name, nfe=60)
        assert run.x.dtype == torch.float32 and run.x.shape == x1.shape, name
        assert bool(run.x.isfinite().all()), name


@dataclass(frozen=True)
class Midpoint(Solver):
    """A solver of one's own, as the README shows it."""

    order = 2
    stages = 2
    source = "textbook"

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        h = like(s - t, x)
        middle = x + h / 2 * problem.drift(x, t)
        return x + h * problem.drift(middle, (t + s) / 2), s, state


def test_a_solver_of_ones_own_runs_and_has_its_order() -> None:
    ode = SDE.probability_flow(EXACT)
    fine = solve(ode, prior(4), solver="pf-ode", grid=torch.linspace(1, 0.2, 1001)).x
    errors = []
    for n in (40, 80):
        run = solve(ode, prior(4), solver=Midpoint(), grid=torch.linspace(1, 0.2, n + 1))
        errors.append(float((run.x - fine).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "dpm++2n"}, r"unknown solver 'dpm\+\+2n'; did you mean 'dpm\+\+2s'"),
        ({"nfe": 0}, "at least 1"),
        ({"nfe": 4, "steps": 4}, "not both"),
        ({}, "give the number of evaluations"),
        ({"nfe": 3, "grid": [1.0, 0.8, 0.5, 0.2, 0.0]}, "more than nfe=3"),
        ({"nfe": 5, "seeds": [1, 2, 3]}, "expected 2"),
        ({"nfe": 5, "seeds": [1.5, 2.5]}, "one integer per sample"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(process("ddim"), prior(2), **{"solver": "ddim", **arguments})


def test_a_process_with_noise_is_refused_by_a_solver_without() -> None:
    with pytest.raises(ValueError, match=r"draws no noise.*euler-maruyama"):
        solve(SDE.reverse(EXACT), prior(2), solver="ddim", nfe=5)


def test_wrong_problems_and_states_are_refused() -> None:
    with pytest.raises(TypeError, match="probability_flow"):
        solve(EXACT, prior(2), solver="euler", nfe=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integrates a ReverseProcess"):
        solve(Equation(lambda x, t: x), prior(2), solver="ddim", grid=[0.0, 1.0])
    with pytest.raises(ValueError, match="rank >= 2"):
        solve(process("ddim"), torch.zeros(3), solver="ddim", nfe=5)
    with pytest.raises(ValueError, match="floating"):
        solve(process("ddim"), torch.zeros(3, 2, dtype=torch.int64), solver="ddim", nfe=5)
    with pytest.raises(ValueError, match=r"got \(2, 3\) for x of \(2, 2\)"):
        solve(ReverseProcess(lambda x, t: torch.zeros(2, 3), SDE), prior(2), solver="ddim", nfe=5)
    with pytest.raises(TypeError, match="name in SOLVERS"):
        solve(process("ddim"), prior(2), solver=5, nfe=5)  # type: ignore[arg-type]


def test_a_process_with_noise_runs_towards_the_data_only():
    process = ReverseProcess(lambda x, t: x, VPSDE(), eta=1.0)
    with pytest.raises(ValueError, match="the grid increases"):
        solve(process, torch.ones(1, 1), solver="ddpm", grid=[0.1, 0.5, 1.0])


def test_an_adaptive_sde_attempt_costs_two():
    """nfe = 3 pays for one attempt and the last evaluation."""
    process = ReverseProcess(lambda x, t: torch.zeros_like(x), VPSDE(), eta=1.0)
    out = solve(process, torch.ones(1, 1), solver="adaptive-sde", nfe=3)
    assert out.nfe.tolist() == [3] and out.status == ["nfe_cap"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.5}, "steps is a whole number, at least 1; got 2.5"),
        ({"nfe": math.nan}, "nfe is a whole number, at least 1; got nan"),
        ({"nfe": "20"}, "nfe is a whole number, at least 1; got '20'"),
        ({"solver": "rk45", "steps": 3}, "chooses its own steps; leave steps out"),
    ],
)
def test_what_is_no_number_of_steps_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(SDE.probability_flow(EXACT), prior(2), **{"solver": "ddim", **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_large_is_finite(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    x = torch.tensor([[most, -most], [0.0, 0.0]], dtype=dtype)
    assert solve(Equation(lambda x, t: torch.zeros_like(x)), x, solver="euler", grid=[0.0, 0.5, 1.0]).status == [
        "ok",
        "ok",
    ]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_the_drift_and_diffusion_are_those_of_the_reverse_process(eta: float) -> None:
    """From v, g and the score as the module defines them, with one time for all and with one for each."""
    x, t = prior(3), torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = SDE(t)
    x0 = EXACT.denoise(x, t.expand(3))
    v = dalpha * x0 + dsigma * (x - alpha * x0) / sigma
    g2 = 2 * sigma * dsigma - 2 * dalpha / alpha * sigma**2
    expected = v - eta**2 * g2 / 2 * (alpha * x0 - x) / sigma**2
    reverse = SDE.reverse(EXACT, eta)
    for time in (t, t.expand(3, 1)):
        assert torch.allclose(reverse.drift(x, time), expected, rtol=1e-12)
        assert torch.allclose((reverse.diffusion(x, time) ** 2).expand(3, 1), (eta**2 * g2).expand(3, 1), rtol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "heun", "pf-ode", "rk45"])
def test_on_step_receives_what_the_model_returned_last(name: str) -> None:
    returned: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        returned.append(x / 3 + t.reshape(-1, 1).to(x))
        return returned[-1]

    def check(step: Step) -> None:
        assert step.denoised is returned[-1]

    solve(
        ReverseProcess(model, VPSDE()), torch.ones(2, 3), solver=name, nfe=None if name == "rk45" else 8, on_step=check
    )
    assert returned


@pytest.mark.parametrize(
    ("solver", "steps", "sde"),
    [("adams", 10, VESDE()), ("heun", 6, VESDE()), ("heun", 10, VESDE()), ("exponential-euler-maruyama", 5, VPSDE())],
)
def test_a_run_that_left_the_process_says_so(solver: str, steps: int, sde: Any) -> None:
    model = Gaussian(torch.zeros(4), 0.25 * torch.ones(4), sde=sde)
    process = sde.reverse(model, float(SOLVERS[solver].stochastic))
    x1 = sde.prior((64, 4), dtype=torch.float64)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2  # far too few at large noise on VE
    out = solve(process, x1, solver=solver, grid=times)
    assert bool(out.x.isfinite().all())
    assert out.status.count("diverged") > 32
    first = solve(process, x1[:3], solver=solver, grid=times)
    assert first.status == out.status[:3]  # a sample's status does not depend on its batch


@pytest.mark.parametrize("solver", ["pf-ode", "unipc", "ddim", "sde", "ddpm", "dpm++2m"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_a_run_that_follows_the_process_is_ok(solver: str, sde: Any) -> None:
    for scale in (0.01, 1.0, 10.0):
        model = GaussianMixture(scale * torch.tensor([[1.0, 0.0], [-0.5, 2.0]]), 0.05 * scale, sde=sde)
        x1 = sde.prior((64, 2), dtype=torch.float64)
        for nfe in (8, 20):
            if solver == "sde" and nfe == 8 and scale < 1:
                continue  # noise of the last steps is more than 10 times the data's width
            out = solve(sde.reverse(model, float(SOLVERS[solver].stochastic)), x1, solver=solver, nfe=nfe)
            assert out.status == ["ok"] * 64, (scale, nfe)
