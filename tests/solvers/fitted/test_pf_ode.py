"""The default solver: its tables on every path, and the engine beyond them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import EDM, VESDE, VPSDE, CosineVPSDE, Flow, GaussianMixture, SubVPSDE
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import SOLVERS, solve
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.engine import ENGINE_STEPS, engine_grid, fixed_order_engine
from solvers.fitted.invariance import Invariance
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fitted_table, scale_noise_levels, table_entry, table_of
from solvers.grids import GRIDS, power
from solvers.planning import plan

MEANS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STEPS = [n for n in range(1, 41) if fitted_table(VPSDE(), n) is not None]


def endpoint(sde, nfe, eps):
    """From the same noise on every path: z_1 = rho_1 eps with rho_1 as large as the path has it."""
    model = GaussianMixture(MEANS, std=0.3, sde=sde)
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    return solve(sde.probability_flow(model), eps * (alpha**2 + sigma**2) ** 0.5, nfe=nfe)


def test_there_are_tables():
    assert {5, 8, 10} <= set(STEPS)


@pytest.mark.parametrize("nfe", STEPS)
def test_a_table_is_the_same_solver_on_every_path(nfe):
    eps = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = {type(sde).__name__: endpoint(sde, nfe, eps) for sde in (VPSDE(), CosineVPSDE(), Flow(), EDM())}
    for name, out in results.items():
        assert out.nfe.tolist() == [nfe] * 8
        # From rho = 80 or 152 D_0 is the mean of the data to variance * eps / rho, at most 6 / rho here.
        bound = 6 / {"VPSDE": 152, "EDM": 80}.get(name, 1e9)
        assert float((out.x - results["CosineVPSDE"].x).abs().max()) < bound, name
    assert torch.allclose(results["CosineVPSDE"].x, results["Flow"].x, atol=1e-8)


@pytest.mark.parametrize(
    ("nfe", "large"), [(n, large) for n in STEPS for large in (False, True) if not large or n not in ENGINE_STEPS]
)
def test_entries_and_tables_are_inverse(nfe, large):
    table = fitted_table(VPSDE(), nfe, large)
    assert table is not None
    entry = table_entry(VPSDE(), table)
    other = fitted_table(SubVPSDE(), nfe, large)
    assert other is not None
    again = table_entry(SubVPSDE(), other)
    assert entry["rho"] == pytest.approx(again["rho"], rel=1e-9)
    assert entry["gates"] == again["gates"]
    for here, there in zip(entry["rows"], again["rows"], strict=True):
        for (a, b), (c, d) in zip(here, there, strict=True):
            assert [a, *b] == pytest.approx([c, *d], rel=1e-9, abs=1e-12)


def test_the_solver_that_runs_follows_the_grid():
    sde = VPSDE()
    model = GaussianMixture(MEANS, std=0.3, sde=sde)
    ode = sde.probability_flow(model)

    def resolved(**budget):
        return plan(ode, (3,), ProbabilityFlow(scale=1.0), **budget)

    table, times = resolved(nfe=8)
    assert isinstance(table, MixtureOfTables) and tuple(times.tolist()) == table.times
    assert resolved(grid="fitted", nfe=8)[0] == resolved(grid=times)[0] == table
    own = torch.linspace(1, 0, 9, dtype=torch.float64)
    engine = resolved(grid=own)[0]
    assert engine == ExponentialAdams(2, variable="time", corrector=True)
    larger = ExponentialAdams(5, variable="time", corrector=True)
    assert resolved(grid=torch.linspace(1, 0, 41))[0] == resolved(nfe=60)[0] == VariableOrder(larger)
    assert resolved(grid=torch.linspace(1, 0, 16))[0] == VariableOrder(larger, fewest=2)
    assert (fixed_order_engine(12), fixed_order_engine(13)) == (engine, larger)
    x1 = sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    assert torch.equal(solve(ode, x1, grid=own).x, solve(ode, x1, solver=engine, grid=own).x)
    assert torch.equal(solve(ode, x1, nfe=8).x, solve(ode, x1, solver=table, nfe=8).x)
    with pytest.raises(TypeError, match="takes no steps itself"):
        ProbabilityFlow().step(ode, x1, times[0], times[1], None, None)


def test_a_path_that_starts_low_gets_the_last_rows_of_a_table():
    whole = fitted_table(EDM(), 9)
    assert whole is not None and whole.invariance == Invariance(9)
    # Where the start is far from its level, the first step is corrected.
    cases = [(1.1, 7, 2, False), (0.98, 7, 2, True), (0.7, 7, 2, True), (1.2, 8, 1, False), (1.0, 15, None, True)]
    for start, steps, lead, near in cases:
        low = EDM(sigma_max=start * float(EDM().marginal(whole.times[max(lead or 1, 1)])[1]))
        table = fitted_table(low, steps)
        if lead is None:
            assert table is None
            continue
        assert table is not None and table.invariance == Invariance(9, lead, near)
        assert table.gates == whole.gates[lead:]
        levels = [float(EDM(sigma_max=80).marginal(t)[1]) for t in whole.times[lead + 1 : -1]]
        assert [float(low.marginal(t)[1]) for t in table.times[1:-1]] == pytest.approx(levels, rel=1e-6)
        assert f"rows {lead + 1} to 9" in table.source
    assert fitted_table(VESDE(sigma_max=1.0), 8) is None
    out = endpoint(VESDE(sigma_max=3.0), 8, torch.ones(2, 3, dtype=torch.float64))
    assert out.nfe.tolist() == [8, 8] and bool(out.x.isfinite().all())


def test_many_dimensions_have_tables_from_high_starts_alone():
    for start in (3.0, 10.5, 14.4, 39.0):
        assert all(fitted_table(VESDE(sigma_max=start), n, large=True) is None for n in range(3, 16))
    assert all(fitted_table(VPSDE(), n, large=True) is None for n in (10, 11, 12))
    for start, steps in ((41.0, 8), (80.0, 5)):
        assert fitted_table(VESDE(sigma_max=start), steps, large=True).invariance == Invariance(steps)


def test_samples_of_many_dimensions_get_higher_noise_levels():
    sde = VPSDE()
    small, large = ProbabilityFlow(large=False), ProbabilityFlow(large=True)
    # The same problem in its first 30 dimensions and in all of 600.
    spectrum = torch.arange(1, 601, dtype=torch.float64) ** -1.5
    for d, by_shape, other in ((30, small, large), (600, large, small)):
        ode = sde.probability_flow(gaussian_spectrum(spectrum[:d], sde))
        x1 = sde.prior((3, d), seeds=range(3), dtype=torch.float64)
        found = solve(ode, x1, nfe=8)
        assert torch.equal(found.x, solve(ode, x1, solver=by_shape, nfe=8).x)
        unlike = solve(ode, x1, solver=other, nfe=8)  # what is asked for is what runs
        assert not torch.equal(found.x, unlike.x)
    # Without a table of their own.
    rho = [torch.divide(*reversed(sde.marginal(GRIDS[name](sde, 4)[1:-1]))) for name in ("fitted", "fitted-large")]
    assert torch.allclose(rho[1] / rho[0], torch.full((3,), 1.5, dtype=torch.float64), rtol=1e-6)


@pytest.fixture(scope="module")
def digits_24() -> tuple[GaussianMixture, Tensor, Tensor]:
    """Digits of 24 x 24, outside every training set, with initial noise and endpoints."""
    small = torch.from_numpy(load_digits().images[300:600] / 8 - 1)[:, None]
    means = interpolate(small, size=24, mode="bilinear").flatten(1)
    model = GaussianMixture(means, std=0.05, sde=VPSDE())
    x1 = model.sde.prior((24, 576), seeds=range(24), dtype=torch.float64)
    return model, x1, converged(model, x1, steps=300)[0]


@pytest.mark.parametrize(("nfe", "bound"), [(5, 0.4), (6, 0.5), (7, 0.8), (8, 0.6), (9, 0.85), (15, 1.2)])
def test_tables_of_many_dimensions_on_data_of_no_family(digits_24, nfe, bound):
    """Over UniPC; with raised noise levels the small tables have 0.60, 0.60, 0.62, 0.66, 0.79, 0.95."""
    model, x1, x0 = digits_24
    ode = model.sde.probability_flow(model)
    assert fitted_table(model.sde, nfe, large=True).times != fitted_table(model.sde, nfe).times
    own, unipc = (float(rms(solve(ode, x1, solver=SOLVERS[s], nfe=nfe).x - x0).mean()) for s in ("pf-ode", "unipc"))
    assert own < bound * unipc


def test_from_10_to_12_evaluations_the_engine_is_better_on_many_dimensions(digits_24):
    """The tables before had 0.75 of the error of UniPC at 10, 0.78 at 11 and 1.01 at 12."""
    model, x1, x0 = digits_24
    ode = model.sde.probability_flow(model)

    def error(name: str, nfe: int) -> float:
        return float(rms(solve(ode, x1, solver=SOLVERS[name], nfe=nfe).x - x0).mean())

    errors = [error("pf-ode", n) for n in (9, *ENGINE_STEPS)]
    assert errors[1] < 0.6 * error("unipc", 10) and errors[3] < 0.85 * error("unipc", 12)
    assert all(after < 1.02 * before for before, after in pairwise(errors)), errors


@pytest.mark.parametrize("steps", ENGINE_STEPS)
def test_from_10_to_12_steps_the_noise_levels_of_many_dimensions_are_twice_as_high(steps):
    """At rho well above 0.3; the last is 5 / steps^2 before."""
    sde = EDM(sigma_max=80.0)
    plain = sde.marginal(power(sde, steps, 5 / steps**2, 2.5)[:-1])[1]
    assert float(plain[-1]) == pytest.approx(5 / steps**2)
    expected = plain * (1 + plain / (plain + 0.3)) / (1 + plain / (plain + 0.3) * plain / 80)
    found = sde.marginal(engine_grid(sde, steps, large=True)[:-1])[1]
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-6, atol=0)
    assert float(found[0]) == pytest.approx(80)


@pytest.mark.parametrize("sde", [VPSDE(), Flow(), EDM(), VESDE(sigma_max=45.0)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("steps", [16, 39, 40])
def test_the_engines_noise_levels_are_higher_too_but_not_the_first_and_the_lowest(sde, steps):
    low, high = (GRIDS[name](sde, steps) for name in ("fitted", "fitted-large"))
    assert (high[0], high[-1]) == (low[0], low[-1]) and bool((high.diff() < 0).all())
    top, *_ = first = [float(sigma / alpha) for alpha, sigma in zip(*sde.marginal(low[:-1]), strict=True)]
    second = [float(sigma / alpha) for alpha, sigma in zip(*sde.marginal(high[:-1]), strict=True)]
    factors = [1 + 0.5 * rho / (rho + 0.3) for rho in first[1:]]
    expected = [f * rho / (1 + (f - 1) * rho / top) for f, rho in zip(factors, first[1:], strict=True)]
    assert second[1:] == pytest.approx(expected, rel=1e-6)
    assert second[-1] < 1.02 * first[-1]


@pytest.mark.parametrize("nfe", STEPS)
def test_a_scaled_table_does_to_larger_data_what_the_table_does_to_the_data(nfe):
    """From pure noise, since z_0 is divided by sqrt(1 + rho^2); the gates see the size of D, so plain tables only."""
    sde, eps = CosineVPSDE(), torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    entry = table_entry(VPSDE(), MixtureOfTables(fitted_table(VPSDE(), nfe).tables[:1], (None,) * nfe))
    ends = []
    for factor in (1.0, 2.0):
        model = GaussianMixture(factor * MEANS, std=factor * 0.3, sde=sde)
        table = table_of(sde, scale_noise_levels(entry, factor))
        ends.append(solve(sde.probability_flow(model), eps, solver=table, nfe=nfe).x)
    assert torch.allclose(2 * ends[0], ends[1], rtol=1e-8)


def test_more_evaluations_are_better():
    """From the tables over to the engine the error falls: mean over a mixture, against a converged run."""
    sde = VPSDE()
    model = GaussianMixture(MEANS, std=0.3, sde=sde)
    x1 = sde.prior((256, 3), seeds=range(256), dtype=torch.float64)
    ode = sde.probability_flow(model)
    truth = solve(ode, x1, solver=SOLVERS["rk45"].__class__(rtol=1e-10)).x
    errors = [float((solve(ode, x1, nfe=n).x - truth).square().mean().sqrt()) for n in (5, 8, 15, 25, 40, 80)]
    assert all(b < 0.75 * a for a, b in pairwise(errors)), errors


def others():
    """Exact problems of no family: mixtures in 3 and 32 dimensions with wide and narrow data, a Gaussian, a line.

    And three of many dimensions: digits at 24 x 24 without more contrast, a cloud, a Gaussian of 3,000.
    """
    sde = VPSDE()

    def cloud(n, d, size, std, seed):
        means = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return GaussianMixture(size * means, std=std, sde=sde), d

    line = torch.tensor([[-0.8], [0.1], [0.7]], dtype=torch.float64)
    images = torch.from_numpy(load_digits().images[1400:1700] / 8 - 1)[:, None]
    large = interpolate(images, size=24, mode="bilinear", align_corners=False).reshape(-1, 576)
    return [
        (GaussianMixture(large, std=0.2, sde=sde), 576),
        cloud(20, 900, 0.3, 0.15, 5),
        (gaussian_spectrum(torch.arange(1, 3001, dtype=torch.float64) ** -0.9, sde), 3000),
        cloud(8, 3, 0.5, 0.1, 0),
        cloud(8, 3, 1.0, 0.2, 1),
        cloud(40, 32, 0.5, 0.1, 2),
        cloud(40, 32, 1.0, 0.3, 3),
        cloud(40, 32, 0.5, 0.02, 4),
        (gaussian_spectrum(torch.arange(1, 101, dtype=torch.float64) ** -1.2, sde), 100),
        (GaussianMixture(line, std=0.1, sde=sde), 1),
    ]


def test_on_problems_that_no_table_was_fitted_to():
    """Mean error over that of UniPC from the same initial noise, with the tables at usual numbers of evaluations."""
    ratios = []
    for model, d in others():
        x1 = model.sde.prior((96, d), seeds=range(96), dtype=torch.float64)
        truth, _ = converged(model, x1, steps=400)
        ode = model.sde.probability_flow(model)
        for nfe in (5, 6, 8, 10, 15):
            ours, theirs = (float(rms(solve(ode, x1, solver=s, nfe=nfe).x - truth).mean()) for s in ("pf-ode", "unipc"))
            ratios.append(ours / theirs)
    assert max(ratios) < 1.3, ratios
    assert torch.tensor(ratios).log().mean().exp() < 0.7, ratios
