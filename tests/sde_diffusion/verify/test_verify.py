"""The checks find what they are for: each of them fails on a solver with one thing wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from sde_diffusion.cli.commands.solvers import solvers as list_solvers
from sde_diffusion.cli.commands.verify import verify as verify_command
from sde_diffusion.verify import CHECKS, find_solver, run_check, verify, verify_all
from sde_diffusion.verify.affine import affine_maps
from sde_diffusion.verify.declarations import formula
from sde_diffusion.verify.moments import exact_moments, line
from sde_diffusion.verify.slopes import fit
from sde_diffusion.verify.targets import (
    T_END,
    VP,
    even_grid,
    irregular_grid,
    mixture,
    mixture_flow,
    run,
    smooth_grid,
    start,
)
from solvers import SOLVERS, Solver
from solvers.classical.adams import integrals

MEMORY: list[float] = []


@dataclass(frozen=True)
class Copy(Solver):
    """Heun's method with one thing wrong, which ``fault`` names; "" is right."""

    fault: str = ""

    order = 2
    stages = 2
    source = "a test"

    def evaluations(self, steps: int, finish: bool = True) -> int:
        right = super().evaluations(steps, finish)
        return right + (self.fault == "miscounts" and steps > 10)

    def step(self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any) -> tuple[Tensor, Tensor, Any]:
        h = float(s - t)
        if self.fault == "stride":
            h = -((h * h) ** 0.5)  # always towards the data
        slope = problem.drift(x, t)
        if self.fault == "couples":
            slope = slope + 1e-9 * slope.mean(0)
        if self.fault == "single":
            return (x + h * slope).float().to(x), s, state
        end = problem.drift(x + h * slope, s)
        weight = 0.49 if self.fault == "coefficient" else 0.5
        out = x + h * (weight * slope + (1 - weight) * end)
        if self.fault == "rows":
            out = out + 1e-6 * x.mean(1, keepdim=True)
        if self.fault == "double":
            out = out.double()
        if self.fault == "remembers":
            MEMORY.append(1e-9)
            out = out + sum(MEMORY)
        if self.fault == "peeks":
            kind = problem.model.model.__self__.predicts
            out = out + 1e-6 * len(kind)
        if self.fault == "divides":
            out = out / problem.path(t).alpha * problem.path(t).alpha
        if self.fault == "two steps" and float(t) == 1 and float(s) > 0.2:
            out = out / 0
        return out, s, state


@dataclass(frozen=True)
class NoisyCopy(Solver):
    """Euler-Maruyama with one thing wrong."""

    fault: str = ""

    order = 1
    strong_order = 1.0
    stochastic = True
    source = "a test"

    def step(self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any) -> tuple[Tensor, Tensor, Any]:
        h = s - t
        fresh = self.fault == "fresh"
        xi = noise.independent(x, t) if fresh else noise.increment(x, t, s)
        size = 1.02 if self.fault == "coefficient" else 1.0
        kick = size * h.abs().sqrt() * problem.diffusion(x, t)
        return x + h * problem.drift(x, t) + kick * xi, s, state


@dataclass(frozen=True)
class AdaptiveCopy(Solver):
    """The table's rk45 behind a wrong word about its tolerance, or looking past the end."""

    rtol: float = 1e-4
    fault: str = ""

    order = 5
    adaptive = True
    stages = 6
    grid = "ends"
    source = "a test"

    def evaluations(self, steps: int, finish: bool = True) -> int:
        return 7 * (steps - 1) + 1 if finish else 7 * steps

    def step(self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any) -> tuple[Tensor, Tensor, Any]:
        from solvers.classical.embedded_rk import EmbeddedRungeKutta

        tolerance = math.sqrt(self.rtol) * 1e-2 if self.fault == "root" else self.rtol
        if self.fault == "past" and state is None:
            problem.denoise(x, torch.full((len(x), *[1] * (x.ndim - 1)), 1.1).double())
        inner = EmbeddedRungeKutta(rtol=tolerance)
        return inner.step(problem, x, t, s, state, noise)


@dataclass(frozen=True)
class StartCopy(Solver):
    """Three steps of Adams-Bashforth behind a first step of Euler's: order 2, which it declares but for the fault."""

    fault: str = ""

    order = 3
    source = "a test"

    @property
    def partial_order(self) -> int:
        return 3 if self.fault == "declares" else 2

    def step(self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any) -> tuple[Tensor, Tensor, Any]:
        slopes, times = [problem.drift(x, t), *(state[0] if state else [])][:3], [t, *(state[1] if state else [])][:3]
        weights = integrals(tuple(float(time) for time in times), float(t), float(s))
        return x + sum(w * f for w, f in zip(weights, slopes, strict=True)), s, (slopes, times)


FAULTS: list[tuple[str, Solver]] = [
    ("order", Copy("coefficient")),
    ("partial run", StartCopy("declares")),
    ("equation", Copy("coefficient")),
    ("evaluations", Copy("miscounts")),
    ("batch", Copy("couples")),
    ("dtype", Copy("double")),
    ("images", Copy("rows")),
    ("parametrization", Copy("peeks")),
    ("reuse", Copy("remembers")),
    ("grids", Copy("stride")),
    ("few steps", Copy("two steps")),
    ("matrix", Copy("divides")),
    ("weak", NoisyCopy("coefficient")),
    ("strong", NoisyCopy("fresh")),
    ("refinement", NoisyCopy("fresh")),
    ("equation", NoisyCopy("coefficient")),
    ("tolerance", AdaptiveCopy(fault="root")),
    ("cap", AdaptiveCopy(fault="past")),
]


@pytest.mark.parametrize(("check", "solver"), FAULTS, ids=lambda v: getattr(v, "fault", v))
def test_one_fault_is_found(check: str, solver: Solver) -> None:
    found = run_check(check, solver)
    assert found is not None and not found.passed
    # What fails is the fault: without it the same check passes.
    right = run_check(check, type(solver)())
    assert right is not None and right.passed, right


def test_every_check_has_a_fault() -> None:
    assert {check for check, _ in FAULTS} == set(CHECKS)


def test_a_wrong_coefficient_shows_its_order() -> None:
    found = run_check("order", Copy("coefficient"))
    assert found is not None
    fitted = found.figures["fitted"]
    assert isinstance(fitted, float) and abs(fitted - 1) < 0.15


def test_an_exception_is_a_failure_with_its_words() -> None:
    @dataclass(frozen=True)
    class Raises(Copy):
        def step(self, *_: Any) -> Any:
            raise RuntimeError("no")

    report = verify(Raises(), ["order", "batch"])
    assert [check.measured for check in report.failures] == ["RuntimeError: no"] * 2


def test_euler_maruyama_moments_by_scalar_recursion() -> None:
    times = even_grid(7)
    mean, variance = exact_moments(1.0)
    expected_mean, expected_variance = mean, variance
    for t, s in pairwise(times):
        alpha, sigma = (float(c) for c in VP(t)[:2])
        f, g2, h = float(VP.f(t)), float(VP.g(t)) ** 2, float(s - t)
        total = alpha**2 * 2.0 + sigma**2
        # drift f x - g^2 score with score = -(x - alpha mu) / total
        gain = 1 + h * (f + g2 / total)
        expected_mean = gain * expected_mean - h * g2 * alpha * 0.7 / total
        expected_variance = gain**2 * expected_variance + abs(h) * g2
    maps = affine_maps(SOLVERS["euler-maruyama"], VP.reverse(line()), [times])
    assert maps is not None
    assert maps[0].moments(mean, variance) == pytest.approx((expected_mean, expected_variance), rel=1e-5)


def test_increments_add_up_in_affine_maps() -> None:
    @dataclass(frozen=True)
    class Halves(NoisyCopy):
        """Adds the increment of the step and takes off those of its two halves: nothing."""

        def step(
            self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any
        ) -> tuple[Tensor, Tensor, Any]:
            m = (t + s) / 2
            clock = problem.clock
            c = [clock.variance(clock.position(float(u))) for u in (t, m, s)]
            roots = [math.sqrt(c[2] - c[0]), math.sqrt(c[1] - c[0]), math.sqrt(c[2] - c[1])]
            whole, left, right = (
                root * noise.increment(x, a, b) for root, (a, b) in zip(roots, ((t, s), (t, m), (m, s)), strict=True)
            )
            return x + (whole - left - right) / roots[0], s, state

    maps = affine_maps(Halves(), VP.reverse(line()), [even_grid(4)])
    assert maps is not None
    assert maps[0].gain == 1
    assert float(maps[0].weights.abs().max()) < 1e-14


def test_a_solver_that_is_not_affine_is_seen() -> None:
    @dataclass(frozen=True)
    class Squares(NoisyCopy):
        def step(self, *args: Any) -> Any:
            x, s, state = super().step(*args)
            return x + 1e-4 * x**2, s, state

    assert affine_maps(Squares(), VP.reverse(line()), [even_grid(4)]) is None


def test_the_reference_runs_back_to_where_it_started() -> None:
    from solvers.classical.embedded_rk import EmbeddedRungeKutta

    exact, error = mixture_flow(16)
    assert error < 1e-10
    tight = EmbeddedRungeKutta(rtol=1e-12)
    flow = VP.probability_flow(mixture())
    back = run(tight, flow, exact, torch.tensor([T_END, 1.0], dtype=torch.float64))
    assert float((back - start(16)).abs().max()) < 1e-8


@pytest.mark.parametrize("grid", [smooth_grid, even_grid, irregular_grid])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_grids_are_grids(grid: Callable[..., Tensor], n: int) -> None:
    times = grid(n, 0.1)
    assert times.shape == (n + 1,)
    assert times[[0, -1]].tolist() == [1.0, 0.1]
    assert bool((times.diff() < 0).all())


def test_the_smooth_grid_starts_with_steps_of_second_order() -> None:
    first = [float(1 - smooth_grid(n)[1]) for n in (100, 200)]
    assert first[0] / first[1] == pytest.approx(4, rel=1e-3)


def test_slopes_leave_out_rounding_and_coarse_grids() -> None:
    steps = [10, 20, 40, 80, 160]
    errors = [5.0, *(n**-3.0 for n in (20, 40, 80)), 3e-7]
    assert fit(steps, errors, floor=1e-6).slope == pytest.approx(3)
    assert fit(steps, [0.0] * 5, floor=1e-12).slope == math.inf
    assert math.isnan(fit(steps, [1.0, math.nan, 1.0, 1.0, 1.0], floor=0).slope)


def test_formulas_are_read_off() -> None:
    @dataclass(frozen=True)
    class Counts(Copy):
        counts: tuple[int, ...] = ()

        def evaluations(self, steps: int, finish: bool = True) -> int:
            return self.counts[steps - 1]

    cases = {
        (1, 2, 3, 4, 5, 6): "N",
        (2, 3, 4, 5, 6, 7): "N + 1",
        (1, 4, 7, 10, 13, 16): "3N - 2",
        (1, 3, 6, 8, 10, 12): "2N (1 for N = 1; 3 for N = 2)",
        (1, 2, 4, 8, 16, 32): "1, 2, 4, 8, 16, 32, ... for N = 1, 2, ...",
    }
    assert {counts: formula(Counts(counts=counts)) for counts in cases} == cases


PLUGIN = """
from dataclasses import dataclass
from solvers.classical.heun import Heun
from solvers.solver import Solver

@dataclass(frozen=True)
class Mine(Heun):
    order = {order}

@dataclass(frozen=True)
class Needs(Heun):
    size: float

tuned = Needs(2.0)
number = 3
"""


def plugin(order: int = 2) -> Path:
    path = Path("mine.py")
    path.write_text(PLUGIN.format(order=order))
    return path


def test_a_solver_of_ones_own() -> None:
    path = plugin()
    assert find_solver(f"{path}:Mine")[0] == "Mine"
    assert find_solver(f"{path}:tuned")[1].evaluations(3) == 5
    assert verify(f"{path}:Mine", ["order"]).passed
    plugin(order=3)
    assert not verify(f"{path}:Mine", ["order"]).passed


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("none.py:Mine", FileNotFoundError, "there is no file none.py"),
        ("mine.py:Mien", ValueError, "mine.py .*Choices: Heun, Mine, Needs, tuned"),
        ("mine.py", ValueError, "mine.py:Name"),
        ("mine.py:number", TypeError, "number in mine.py is a int"),
        ("mine.py:Needs", ValueError, "cannot be made without arguments"),
        ("empty.py:Mine", ValueError, "no Solver at all"),
        ("broken.py:Mine", ValueError, "broken.py does not run: SyntaxError"),
        ("huen", ValueError, "did you mean 'heun'"),
    ],
)
def test_a_plug_in_that_cannot_be_used(spec: str, error: type[Exception], words: str) -> None:
    plugin()
    Path("empty.py").write_text("x = 1\n")
    Path("broken.py").write_text("x = = 1\n")
    with pytest.raises(error, match=words):
        verify(spec)


def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(verify_command)
    app.command("solvers")(list_solvers)
    return app


def test_the_command_prints_figures_and_fails_with_the_solver() -> None:
    plugin(order=3)
    done = CliRunner().invoke(program(), ["verify", "mine.py:Mine", "--json"])
    assert done.exit_code == 1
    (report,) = json.loads(done.stdout)
    order = next(check for check in report["checks"] if check["name"] == "order")
    assert (report["passed"], order["passed"], order["figures"]["declared"]) == (False, False, 3)
    assert abs(order["figures"]["fitted"] - 2) < 0.15
    done = CliRunner().invoke(program(), ["verify", "ddim"])
    assert done.exit_code == 0
    assert "order 1 +- 0.15" in done.stdout


def test_the_table_of_solvers_is_what_they_declare() -> None:
    done = CliRunner().invoke(program(), ["solvers", "--json"])
    table = json.loads(done.stdout)
    assert list(table) == list(SOLVERS)
    assert table["heun"]["evaluations"] == "2N - 1"
    assert "heun" in CliRunner().invoke(program(), ["solvers"]).stdout


@pytest.mark.slow
def test_two_processes_report_what_one_does() -> None:
    seen: list[str] = []
    some = ["order", "reuse"]
    reports = verify_all(["ddim", "heun"], some, jobs=2, on_report=lambda r: seen.append(r.solver))
    assert seen == ["ddim", "heun"]
    assert [r.checks for r in reports] == [verify(name, some).checks for name in seen]
