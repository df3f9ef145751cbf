"""Adaptive Runge-Kutta: accuracy, independence of samples, the interval, the cap, and failures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import Equation, ReverseProcess, solve, steps
from solvers.classical.butcher_tableaus import PAIRS
from solvers.classical.coordinates import Angle
from solvers.classical.embedded_rk import EmbeddedRungeKutta

MEANS = torch.tensor([[0.8, -0.4], [-0.5, 0.9], [0.1, -1.2]], dtype=torch.float64)
PATHS = [VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), EDM(), Flow()]


def flow(sde: SDE) -> ReverseProcess:
    return sde.probability_flow(GaussianMixture(MEANS, std=0.3, sde=sde))


def noise(sde: SDE, batch: int = 6, dim: int = 2) -> Tensor:
    return sde.prior((batch, dim), seeds=range(batch), dtype=torch.float64)


# The coordinates


@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("d", [0.5, 2.0])
def test_the_angle_is_inverted_to_rounding(sde: SDE, d: float) -> None:
    angle = Angle(sde, 1e-9, 1.0, d)
    t = torch.cat([torch.logspace(-9, 0, 400).double().clamp(1e-9, 1), torch.linspace(0.001, 1, 400).double()])
    theta = angle.position(t)
    back = angle.position(angle.time(theta))
    assert float(((back - theta) / theta).abs().max()) < 2e-15
    # Where theta(t) is steep enough to say, so is the time.
    inner = (t > 1e-6) & (t < 0.9)
    assert float(((angle.time(theta) - t) / t)[inner].abs().max()) < 1e-13


def test_a_path_with_kinks_is_inverted() -> None:
    """A schedule interpolated between five values: Newton steps alone may cycle at its kinks."""

    class Kinked(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - self.sigma(t) ** 2 / 2

        def sigma(self, t: Tensor) -> Tensor:
            values = torch.tensor([0.0, 0.01, 0.5, 0.51, 1.0], dtype=torch.float64)
            k = (t * 4).floor().clamp(0, 3).long()
            return torch.lerp(values[k], values[k + 1], t * 4 - k)

    angle = Angle(Kinked(), 1e-4, 1.0)
    t = torch.linspace(1e-4, 1, 1001, dtype=torch.float64)
    assert torch.allclose(angle.time(angle.position(t)), t, rtol=1e-12, atol=1e-14)


def test_gaussian_data_is_exact_in_one_attempt() -> None:
    """Y is constant for data of standard deviation d, whatever the tolerance."""
    sde = VPSDE()
    model = Gaussian(torch.zeros(2), torch.full((2,), 0.25), sde=sde)
    x = noise(sde)
    out = solve(
        sde.probability_flow(model),
        x,
        solver=EmbeddedRungeKutta(rtol=1e-9, sigma_data=0.5),
        grid=[1.0, 1e-3],
    )
    assert torch.allclose(out.x, model.flow(x, 1.0, 1e-3), rtol=1e-12)
    assert out.nfe.max() <= 1 + 6 * 4


def test_every_path_takes_the_same_steps() -> None:
    """Only the angle counts: paths differ by where they end, here at one theta and one y."""
    results = []
    for sde in (VPSDE(), SubVPSDE(), VESDE(), EDM(), Flow()):
        high, low = (float(sde.time(lam)) for lam in (-1.5, 3.0))
        y = noise(VPSDE())
        scale = [math.hypot(float(sde(t).alpha), float(sde(t).sigma) / 0.5) for t in (high, low)]
        solver = EmbeddedRungeKutta(sigma_data=0.5)
        out = solve(flow(sde), y * scale[0], solver=solver, grid=[high, low])
        results.append((out.x / scale[1], out.nfe))
    for y, nfe in results[1:]:
        assert torch.equal(nfe, results[0][1])
        assert torch.allclose(y, results[0][0], rtol=1e-10)


# Accuracy


@pytest.mark.parametrize("form", ["velocity", "raw"])
@pytest.mark.parametrize("name", PAIRS)
def test_fixed_steps_have_the_order_of_the_pair(name: str, form: str) -> None:
    """Tolerances so loose that every attempt is accepted: one step per grid interval."""
    pair = PAIRS[name]
    process, x = flow(VPSDE()), noise(VPSDE(), 3)
    loose = EmbeddedRungeKutta(pair, rtol=1e6, form=form)
    exact = solve(process, x, solver=EmbeddedRungeKutta(rtol=1e-14), grid=[1.0, 0.2]).x
    errors = []
    for count in (80, 160) if pair.order == 5 else (20, 40):
        times = torch.linspace(1, 0.2, count + 1, dtype=torch.float64)
        out = solve(process, x, solver=loose, grid=times)
        assert out.nfe.tolist() == [loose.evaluations(count, finish=False)] * 3
        errors.append(float((out.x - exact).norm()))
    assert abs(math.log2(errors[0] / errors[1]) - pair.order) < 0.15, errors


@pytest.mark.parametrize("form", ["velocity", "raw"])
@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
def test_the_error_follows_the_tolerance(sde: SDE, form: str) -> None:
    process, x = flow(sde), noise(sde)
    # Raw times of these end at infinite slopes; the transformed equation takes them from t = 1 to
    # 0.
    start = 1.0 if form == "velocity" or not isinstance(sde, CosineVPSDE) else 0.999
    exact = solve(process, x, solver=EmbeddedRungeKutta(rtol=1e-10), grid=[start, 1e-4]).x
    errors = []
    for rtol in (1e-4, 1e-6, 1e-8):
        out = solve(process, x, solver=EmbeddedRungeKutta(rtol=rtol, form=form), grid=[start, 1e-4])
        assert out.status == ["ok"] * 6
        errors.append(float((out.x - exact).abs().max()))
    assert errors[0] < 2e-2 and errors[2] < 2e-6
    assert errors[2] < errors[1] / 10 < errors[0] / 100 + 1e-9


def test_increasing_times_encode() -> None:
    process, x = flow(VPSDE()), noise(VPSDE())
    solver = EmbeddedRungeKutta(rtol=1e-10)
    there = solve(process, x, solver=solver, grid=[1.0, 0.4, 1e-3]).x
    back = solve(process, there, solver=solver, grid=[1e-3, 0.7, 1.0]).x
    assert torch.allclose(back, x, atol=1e-6)
    decay = Equation(lambda x, t: -x)
    out = solve(decay, torch.ones(1, 1).double(), solver=EmbeddedRungeKutta(rtol=1e-10), grid=[1.0, 0.0])
    assert abs(float(out.x) - math.e) < 1e-8


def test_float32_matches_float64() -> None:
    """States are rounded, times and error control are not: the same result to the tolerance."""
    process, x = flow(VPSDE()), noise(VPSDE(), 32)
    double = solve(process, x, solver="rk45")
    single = solve(process, x.float(), solver="rk45")
    assert single.x.dtype == torch.float32
    assert float((single.x - double.x).abs().max()) < 1e-3
    assert float((single.x - double.x).abs().median()) < 2e-5
    # An attempt at the edge of the tolerance may fall to the other side, in few samples.
    assert int((single.nfe != double.nfe).sum()) <= 5
    # A tolerance below float32 is raised to what float32 can resolve instead of grinding to a halt.
    tiny = solve(process, x.float(), solver=EmbeddedRungeKutta(rtol=1e-12))
    assert tiny.status == ["ok"] * 32
    assert int(tiny.nfe.max()) < 400


def test_images_keep_their_shape() -> None:
    sde = VPSDE()
    model = GaussianMixture(torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2), std=0.2, sde=sde)
    x = sde.prior((2, 3, 2, 2), seeds=[4, 5])
    out = solve(sde.probability_flow(model), x, solver="rk23", nfe=60)
    assert out.x.shape == x.shape
    assert out.status == ["ok", "ok"]


# The interval


@pytest.mark.parametrize("form", ["velocity", "raw"])
@pytest.mark.parametrize("ends", [(1.0, 0.05), (0.05, 1.0), (0.7, 0.3)])
def test_no_evaluation_outside_the_interval(form: str, ends: tuple[float, float]) -> None:
    process = flow(VPSDE())
    seen: list[Tensor] = []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.clone())
        return process.model(x, t)

    solve(
        ReverseProcess(spy, process.path),
        noise(VPSDE()),
        solver=EmbeddedRungeKutta(form=form),
        grid=list(ends),
    )
    times = torch.cat(seen)
    assert float(times.min()) >= min(ends) and float(times.max()) <= max(ends)
    assert bool((times == ends[1]).any())


def test_starting_on_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma = 0"):
        solve(flow(VPSDE()), noise(VPSDE()), solver="rk45", grid=[0.0, 1.0])


# One sample and its batch. The drift is elementwise, so that a batch of any size computes the same
# bits.


def stiff_first(x: Tensor, t: Tensor) -> Tensor:
    """The first coordinate is a rate that stays: dx = rate (8 t (1 - t) - x)."""
    rate = x[:, :1]
    return torch.cat([torch.zeros_like(rate), rate * ((8 * t * (1 - t))[:, None] - x[:, 1:])], 1)


def test_one_stiff_and_31_easy_samples() -> None:
    x = torch.ones(32, 3, dtype=torch.float64)
    x[:, 0] = torch.linspace(0.5, 3.0, 32).double()
    x[7, 0] = 400.0
    x[:, 1:] += torch.linspace(0, 1, 64).double().reshape(32, 2)
    calls: list[int] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return stiff_first(x, t)

    for solver in (EmbeddedRungeKutta(), EmbeddedRungeKutta(PAIRS["rk23"])):
        calls.clear()
        out = solve(Equation(counted), x, solver=solver, grid=[0.0, 1.0])
        # Active-set compaction at its best: as many calls as the hardest sample needs, no row too
        # many.
        assert len(calls) == int(out.nfe.max())
        assert sum(calls) == int(out.nfe.sum())
        assert int(out.nfe[7]) > 5 * int(out.nfe[8])
        for k in range(32):
            alone = solve(Equation(stiff_first), x[k : k + 1], solver=solver, grid=[0.0, 1.0])
            assert torch.equal(alone.x[0], out.x[k])
            assert int(alone.nfe[0]) == int(out.nfe[k])


def test_reverse_process_samples_do_not_depend_on_their_batch() -> None:
    process, x = flow(VPSDE()), noise(VPSDE(), 16)
    together = solve(process, x, solver="rk45")
    for k in (0, 7, 15):
        alone = solve(process, x[k : k + 1], solver="rk45")
        # Matrix products round by batch size; nothing else differs.
        assert torch.allclose(alone.x[0], together.x[k], rtol=1e-9, atol=1e-11)
        assert int(alone.nfe[0]) == int(together.nfe[k])


def test_nan_stops_its_own_sample_only() -> None:
    def wall(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((x > 2).any(1, keepdim=True), torch.nan, x)

    x = torch.tensor([[0.1], [1.0], [0.2], [3.0]], dtype=torch.float64)
    out = solve(Equation(wall), x, solver="rk45", grid=[0.0, 1.0])
    assert out.status == ["ok", "non_finite", "ok", "non_finite"]
    clean = solve(Equation(lambda x, t: x), x[[0, 2]], solver="rk45", grid=[0.0, 1.0])
    assert torch.equal(out.x[[0, 2]], clean.x)
    assert torch.equal(out.nfe[[0, 2]], clean.nfe)
    # e^t reaches 2 at log 2: the state just before it is kept, and where it was lost is reported.
    assert abs(float(out.failed_at[1]) - math.log(2)) < 1e-6
    assert 1.999 < float(out.x[1]) <= 2
    assert float(out.failed_at[3]) == 0 and float(out.x[3]) == 3
    assert int(out.nfe[3]) <= 7


def test_dt_min_stops_a_discontinuity() -> None:
    def jump(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.5, 1.0, 1e6) * torch.ones_like(x)

    x = torch.zeros(1, 1, dtype=torch.float64)
    out = solve(Equation(jump), x, solver=EmbeddedRungeKutta(rtol=1e-6, dt_min=1e-6), grid=[0.0, 1.0])
    assert out.status == ["dt_min"]
    assert abs(float(out.x) - 0.5) < 1e-4


# The budget


@pytest.mark.parametrize("nfe", [8, 9, 13, 14, 20, 26, 27, 33])
def test_the_cap_is_never_exceeded(nfe: int) -> None:
    out = solve(flow(VPSDE()), noise(VPSDE(), 8), solver=EmbeddedRungeKutta(rtol=1e-7), nfe=nfe)
    assert bool((out.nfe <= nfe).all())
    assert set(out.status) == {"nfe_cap"}
    assert bool(out.x.isfinite().all())
    # Nothing is left unspent that would have paid for one more attempt.
    assert bool((out.nfe > nfe - 6).all())


def test_capped_samples_are_finished_from_where_they_stopped() -> None:
    process, x = flow(VPSDE()), noise(VPSDE(), 4)
    solver = EmbeddedRungeKutta(rtol=1e-7)
    *_, before, last = steps(process, x, torch.tensor([1.0, 0.3, 1e-4, 0.0]).double(), solver, nfe=21)
    assert bool((before.t > 0.0).all())
    expected = process.model(before.x, before.t.reshape(-1))
    assert torch.allclose(last.x, expected, rtol=1e-12)


def test_a_sample_stopped_in_one_interval_does_not_move_in_the_next() -> None:
    def wall(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x > 2, torch.nan, x)

    x = torch.tensor([[0.1], [1.5]], dtype=torch.float64)
    out = solve(Equation(wall), x, solver="rk45", grid=[0.0, 0.5, 0.9, 1.0], trajectory=True)
    assert out.status == ["ok", "non_finite"]
    assert out.trajectory is not None and out.trajectory.shape == (4, 2, 1)
    assert torch.equal(out.trajectory[1, 1], out.trajectory[3, 1])
    assert abs(float(out.x[0]) - 0.1 * math.e) < 1e-4
    # Also when all of them are stopped: every time of the grid still has its state.
    out = solve(Equation(wall), x[1:], solver="rk45", grid=[0.0, 0.5, 0.9, 1.0], trajectory=True)
    assert out.trajectory is not None and out.trajectory.shape == (4, 1, 1)


def test_a_guided_pair_counts_twice() -> None:
    process = flow(VPSDE())
    pair = ReverseProcess(process.model, process.path, cost=2)
    once, twice = (solve(p, noise(VPSDE()), solver="rk45").nfe for p in (process, pair))
    assert torch.equal(2 * once, twice)
    assert int(solve(pair, noise(VPSDE()), solver="rk45", nfe=31).nfe.max()) <= 31


def test_budgets_below_one_attempt_are_refused() -> None:
    assert EmbeddedRungeKutta().evaluations(2) == 8
    with pytest.raises(ValueError, match="more than nfe=7"):
        solve(flow(VPSDE()), noise(VPSDE()), solver="rk45", nfe=7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rtol": 0.0}, "tolerances must be positive"),
        ({"atol": -1.0}, "tolerances must be positive"),
        ({"form": "velocty"}, "did you mean 'velocity'"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"dt_min": 0.0}, "dt_min must be positive"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmbeddedRungeKutta(**settings)  # type: ignore[arg-type]


def test_a_stochastic_process_is_refused() -> None:
    sde = VPSDE()
    with pytest.raises(ValueError, match="euler-maruyama"):
        solve(sde.reverse(GaussianMixture(MEANS, std=0.3, sde=sde)), noise(sde), solver="rk45", nfe=40)
