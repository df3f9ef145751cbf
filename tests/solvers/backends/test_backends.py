"""torchdiffeq, scipy and torchsde: the same answers, counted, clamped, capped."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchsde
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import VPSDE, CosineVPSDE
from solvers import Equation, ReverseProcess, Solver, solve, steps
from solvers.backends import SCIPY, TORCHDIFFEQ, TORCHSDE, Scipy, TorchDiffEq, TorchSDE
from solvers.brownian_path import BrownianPath
from solvers.classical.embedded_rk import EmbeddedRungeKutta

ROOT = Path(__file__).resolve().parents[3]
SDE = VPSDE()
MIXTURE = GaussianMixture(torch.tensor([[0.8, -0.4], [-0.5, 0.9], [0.1, -1.2]], dtype=torch.float64), std=0.3, sde=SDE)
FLOW = SDE.probability_flow(MIXTURE)
X = SDE.prior((4, 2), seeds=range(4), dtype=torch.float64)
EXACT = solve(FLOW, X, solver=EmbeddedRungeKutta(rtol=1e-12), grid=[1.0, 0.1]).x

ADAPTIVE: list[Solver] = [
    *(TorchDiffEq(name, 1e-6, 1e-6) for name, (_, count) in TORCHDIFFEQ.items() if count is None),
    *(Scipy(name, 1e-6, 1e-6) for name in SCIPY),
]
FIXED = [name for name, (_, count) in TORCHDIFFEQ.items() if count is not None]


def label(solver: Any) -> str:
    return f"{type(solver).__name__}-{solver.method}"


def spied(process: ReverseProcess) -> tuple[ReverseProcess, list[Tensor]]:
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.clone())
        return process.model(x, t)

    return ReverseProcess(model, process.path, process.eta), seen


@pytest.mark.parametrize("solver", ADAPTIVE, ids=label)
def test_adaptive_methods_agree_count_and_stay_inside(solver: Any) -> None:
    if solver.method == "implicit_adams":
        solver = TorchDiffEq("implicit_adams", 1e-6, 1e-6, substeps=100)
    process, seen = spied(FLOW)
    out = solve(process, X, solver=solver, grid=[1.0, 0.5, 0.1])
    assert out.status == ["ok"] * 4
    # Low orders keep the tolerance per step, and add up over their many steps.
    assert float((out.x - EXACT).abs().max()) < (1e-3 if solver.order < 3 else 2e-5)
    assert out.nfe.tolist() == [len(seen)] * 4
    times = torch.cat(seen)
    assert float(times.min()) >= 0.1 and float(times.max()) <= 1.0


@pytest.mark.parametrize("solver", [TorchDiffEq(), TorchDiffEq("rk4"), Scipy()], ids=label)
def test_increasing_times(solver: Any) -> None:
    process, seen = spied(FLOW)
    times = [0.1, 1.0] if solver.adaptive else torch.linspace(0.1, 1, 101, dtype=torch.float64)
    back = solve(process, EXACT, solver=solver, grid=times).x
    assert torch.allclose(back, X, atol=2e-3)
    seen_times = torch.cat(seen)
    assert float(seen_times.min()) >= 0.1 and float(seen_times.max()) <= 1.0


@pytest.mark.parametrize(("method", "substeps"), [*((name, 1) for name in FIXED), ("explicit_adams", 4)])
def test_fixed_methods_have_their_order_and_cost(method: str, substeps: int) -> None:
    solver = TorchDiffEq(method, substeps=substeps)
    errors = []
    for count in (80, 160):
        out = solve(FLOW, X, solver=solver, grid=torch.linspace(1, 0.1, count + 1, dtype=torch.float64))
        assert out.nfe.tolist() == [solver.evaluations(count, finish=False)] * 4
        errors.append(float((out.x - EXACT).norm()))
    assert abs(math.log2(errors[0] / errors[1]) - solver.order) < 0.15, errors


def test_torchdiffeq_euler_is_euler() -> None:
    out, ours = (solve(FLOW, X, solver=s, steps=7, grid="uniform") for s in (TorchDiffEq("euler"), "euler"))
    assert torch.allclose(out.x, ours.x, rtol=1e-12)
    assert torch.equal(out.nfe, ours.nfe)


@pytest.mark.parametrize("solver", [TorchDiffEq(), TorchDiffEq("dopri8"), Scipy(), Scipy("DOP853")], ids=label)
@pytest.mark.parametrize("nfe", [3, 20, 37])
def test_the_cap_keeps_the_state_reached(solver: Any, nfe: int) -> None:
    process, seen = spied(FLOW)
    out = solve(process, X, solver=solver, nfe=nfe)
    assert out.status == ["nfe_cap"] * 4
    assert out.nfe.tolist() == [len(seen)] * 4 and len(seen) <= nfe
    assert bool(out.x.isfinite().all())
    # The last call denoises from the time that was reached, not from a stage ahead of it.
    *_, before, last = steps(FLOW, X, out.times, solver, nfe=nfe)
    assert torch.equal(last.x, FLOW.model(before.x, before.t.reshape(-1)))
    if nfe == 37:
        assert bool((before.t < 1).all())


@pytest.mark.parametrize("solver", [TorchDiffEq(), Scipy()], ids=label)
def test_a_drift_that_is_not_finite_stops_its_sample(solver: Any) -> None:
    def wall(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x > 2, torch.nan, x)

    x = torch.tensor([[0.1], [1.5]], dtype=torch.float64)
    out = solve(Equation(wall), x, solver=solver, grid=[0.0, 1.0])
    assert out.status == ["ok", "non_finite"]
    assert abs(float(out.x[0]) - 0.1 * math.e) < 1e-4
    assert 0 <= float(out.failed_at[1]) < math.log(2 / 1.5)


@pytest.mark.parametrize("solver", [TorchDiffEq(), Scipy(), EmbeddedRungeKutta()], ids=lambda s: type(s).__name__)
def test_a_blow_up_is_a_status_not_an_assertion(solver: Solver) -> None:
    """dx = 4 x^2 from 1 is 1 / (1 - 4 t), which does not exist beyond t = 1/4."""
    blow_up = Equation(lambda x, t: 4 * x * x)
    *_, last = steps(blow_up, torch.ones(1, 1).double(), torch.tensor([0.0, 1.0]).double(), solver)
    assert last.status.tolist() == [3]
    assert abs(float(last.t) - 0.25) < 1e-4
    assert bool(last.x.isfinite().all()) and float(last.x) > 1e4


@pytest.mark.parametrize("solver", [TorchDiffEq(), Scipy(), TorchDiffEq("midpoint")], ids=label)
def test_dtype_and_shape_are_kept(solver: Any) -> None:
    model = GaussianMixture(torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2), std=0.2, sde=SDE)
    x = SDE.prior((2, 3, 2, 2), seeds=[4, 5])
    out = solve(SDE.probability_flow(model), x, solver=solver, nfe=80)
    assert (out.x.dtype, out.x.shape) == (torch.float32, x.shape)
    assert out.status == ["ok", "ok"]


# torchsde


def uniform(steps: int, end: float = 0.1) -> Tensor:
    return torch.linspace(1, end, steps + 1, dtype=torch.float64)


def test_torchsde_euler_is_euler_maruyama() -> None:
    process = SDE.reverse(MIXTURE)
    seeds = [11, 5, 7, 3]
    theirs, ours = (
        solve(process, X, solver=s, grid=uniform(30), seeds=seeds) for s in (TorchSDE("euler"), "euler-maruyama")
    )
    assert torch.allclose(theirs.x, ours.x, rtol=1e-10)
    assert torch.equal(theirs.nfe, ours.nfe)


@pytest.mark.parametrize("method", TORCHSDE)
def test_torchsde_counts_and_keeps_samples_apart(method: str) -> None:
    process, solver = SDE.reverse(MIXTURE), TorchSDE(method)
    for grid in (uniform(30), torch.cat([uniform(30), torch.zeros(1)])):
        finish = float(grid[-1]) == 0
        out = solve(process, X, solver=solver, grid=grid, seeds=range(4))
        assert out.nfe.tolist() == [solver.evaluations(len(grid) - 1, finish)] * 4
        # The reversible Heun method leaves the process at so few steps: one of these samples ends at -7.5.
        assert set(out.status) <= ({"ok", "diverged"} if method == "reversible_heun" else {"ok"})
        alone = solve(process, X[2:3], solver=solver, grid=grid, seeds=[2])
        assert torch.allclose(alone.x[0], out.x[2], rtol=1e-9)


class UnitNoise:
    """Every increment is a row of its own: squares of a linear run sum to its exact variance."""

    def __init__(self, times: Tensor) -> None:
        self.row = {float(t): 1 + i for i, t in enumerate(times)}

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[self.row[float(t)]] = 1
        return out

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        raise AssertionError("only srk draws a second normal, and it is left out")

    def rows(self, index: Tensor) -> UnitNoise:
        return self


# srk is not linear in its noise, so this exact test does not cover it.
@pytest.mark.parametrize("method", [m for m in TORCHSDE if m != "srk"])
def test_weak_order_on_gaussian_data(method: str) -> None:
    model = Gaussian(torch.zeros(1), torch.tensor([0.25]), sde=SDE)
    process, solver = SDE.reverse(model), TorchSDE(method)
    (_, start), (_, end) = model.moments(torch.tensor(1.0)), model.moments(torch.tensor(0.1))
    errors = []
    for count in (80, 160):
        times = uniform(count)
        x = torch.zeros(count + 1, 1, dtype=torch.float64)
        x[0] = start.sqrt()
        *_, last = steps(process, x, times, solver, UnitNoise(times))
        errors.append(abs(float(last.x.square().sum() - end)))
    assert abs(math.log2(errors[0] / errors[1]) - solver.order) < 0.15, errors


def test_srk_has_the_moments_of_gaussian_data() -> None:
    model = Gaussian(torch.full((1,), 0.3), torch.tensor([0.25]), sde=SDE)
    x = SDE.prior((4000, 1), seeds=range(4000), dtype=torch.float64)
    out = solve(SDE.reverse(model), x, solver=TorchSDE("srk"), grid=uniform(60)).x
    mean, variance = model.moments(torch.tensor(0.1))
    # Standard errors of a mean and a variance of 4000 normal numbers.
    assert abs(float(out.mean() - mean)) < 3 * float(variance / 4000) ** 0.5
    assert abs(float(out.var() - variance[0, 0])) < 3 * float(variance) * (2 / 4000) ** 0.5


@pytest.mark.parametrize("method", TORCHSDE)
def test_a_step_of_torchsde_is_that_of_sdeint(method: str) -> None:
    model = Gaussian(torch.tensor([0.3, -0.1]), torch.tensor([0.25, 0.5]), sde=SDE)
    process, t, s = SDE.reverse(model), torch.tensor(0.6), torch.tensor(0.45)
    t, s = t.double(), s.double()
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = BrownianPath.along(torch.arange(5), process.clock, torch.stack([t, s]))
    h = float(t - s)

    class Increments(torchsde.BaseBrownian):
        shape, dtype, device = (5, 2), torch.float64, torch.device("cpu")
        levy_area_approximation = "space-time"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            w = path.increment(x, t, s) * h**0.5
            return (w, h / 2 * w + (h**3 / 12) ** 0.5 * path.independent(x, t)) if return_U else w

        def __repr__(self) -> str:
            return "Increments()"

    class Reversed:
        noise_type, sde_type = "diagonal", TORCHSDE[method][0]

        def f(self, r: Tensor, y: Tensor) -> Tensor:
            return -process.drift(y, t - r)

        def g(self, r: Tensor, y: Tensor) -> Tensor:
            return process.diffusion(y, t - r).expand(y.shape)

    ends = torch.tensor([0.0, h], dtype=torch.float64)
    expected = torchsde.sdeint(Reversed(), x, ends, bm=Increments(), method=method, dt=h)[-1]
    *_, last = steps(process, x, torch.stack([t, s]), TorchSDE(method), path)
    torch.testing.assert_close(last.x, expected, rtol=1e-12, atol=1e-12)


def test_torchsde_starts_from_pure_noise() -> None:
    sde = CosineVPSDE()
    model = GaussianMixture(torch.tensor([[0.8, -0.4], [-0.5, 0.9]]).double(), std=0.3, sde=sde)
    for method in TORCHSDE:
        if method != "reversible_heun":
            out = solve(sde.reverse(model), X, solver=TorchSDE(method), nfe=160)
            assert out.status == ["ok"] * 4
            assert float(out.x.abs().max()) < 3
            assert int(out.nfe.max()) <= 160


# The door


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TorchDiffEq("dopri6"), "did you mean 'dopri"),
        (lambda: TorchDiffEq(rtol=0.0), "tolerances must be positive"),
        (lambda: TorchDiffEq("rk4", substeps=0), "substeps must be at least 1"),
        (lambda: Scipy("rk45"), "Choices: BDF"),
        (lambda: Scipy(atol=-1.0), "tolerances must be positive"),
        (lambda: TorchSDE("eular"), "did you mean 'euler'"),
    ],
)
def test_bad_settings_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("solver", "package"),
    [(TorchDiffEq(), "torchdiffeq"), (Scipy(), "scipy"), (TorchSDE(), "torchsde")],
)
def test_a_missing_package_is_named(solver: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("solvers.backends.interval.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        solve(FLOW, X, solver=solver, grid=[1.0, 0.5])


def test_importing_solvers_imports_no_backend() -> None:
    code = "import sys, solvers; print({'torchdiffeq', 'torchsde', 'scipy'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
