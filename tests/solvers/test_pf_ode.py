"""The default solver: its tables on every path, and the engine beyond them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import EDM, VESDE, VPSDE, CosineVPSDE, Flow, GaussianMixture, SubVPSDE
from sde_diffusion.converged import converged, rms
from solvers import SOLVERS, solve
from solvers.exponential import ExponentialAdams
from solvers.gated import GatedTable
from solvers.grids import GRIDS
from solvers.pf_ode import ProbabilityFlow, fitted_table, table_entry

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
        # The paths start at rho = 80 to infinity, where D is the mean of the data to 1 / rho.
        assert float((out.x - results["CosineVPSDE"].x).abs().max()) < 1e-3, name
    assert torch.allclose(results["CosineVPSDE"].x, results["Flow"].x, atol=1e-8)


@pytest.mark.parametrize("nfe", STEPS)
def test_entries_and_tables_are_inverse(nfe):
    table = fitted_table(VPSDE(), nfe)
    assert table is not None
    entry = table_entry(VPSDE(), table)
    other = fitted_table(SubVPSDE(), nfe)
    assert other is not None
    again = table_entry(SubVPSDE(), other)
    assert entry["rho"] == pytest.approx(again["rho"], rel=1e-9)
    assert entry["gates"] == again["gates"]
    for here, there in zip(entry["rows"], again["rows"], strict=True):
        for (a, b), (c, d) in zip(here, there, strict=True):
            assert [a, *b] == pytest.approx([c, *d], rel=1e-9, abs=1e-12)


def test_the_member_follows_the_grid():
    sde = VPSDE()
    solver = ProbabilityFlow()
    assert isinstance(solver.member(sde, GRIDS["fitted"](sde, 8)), GatedTable)
    own = torch.linspace(1, 0, 9, dtype=torch.float64)
    engine = solver.member(sde, own)
    assert engine == ExponentialAdams(2, variable="time", corrector=True)
    assert solver.member(sde, torch.linspace(1, 0, 41)) == ExponentialAdams(4, variable="time", corrector=True)
    model = GaussianMixture(MEANS, std=0.3, sde=sde)
    x1 = sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    ode = sde.probability_flow(model)
    assert torch.equal(solve(ode, x1, grid=own).x, solve(ode, x1, solver=engine, grid=own).x)
    assert isinstance(solver.member(sde, GRIDS["fitted"](sde, 60)), ExponentialAdams)


def test_a_path_that_starts_low_gets_the_engine():
    low = VESDE(sigma_max=1.0)
    assert fitted_table(low, 8) is None
    table = fitted_table(EDM(), 8)
    assert table is not None
    second = float(EDM().marginal(table.times[1])[1])
    # A first step much shorter than the one that was fitted has other weights.
    assert fitted_table(EDM(sigma_max=1.1 * second), 8) is None
    assert fitted_table(EDM(sigma_max=1.4 * second), 8) is not None
    out = endpoint(low, 8, torch.ones(2, 3, dtype=torch.float64))
    assert out.nfe.tolist() == [8, 8] and bool(out.x.isfinite().all())


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
    """Exact problems of no family: mixtures in 3 and 32 dimensions with wide and narrow data, a Gaussian, a line."""
    sde = VPSDE()

    def cloud(n, d, size, std, seed):
        means = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return GaussianMixture(size * means, std=std, sde=sde), d

    line = torch.tensor([[-0.8], [0.1], [0.7]], dtype=torch.float64)
    return [
        cloud(8, 3, 0.5, 0.1, 0),
        cloud(8, 3, 1.0, 0.2, 1),
        cloud(40, 32, 0.5, 0.1, 2),
        cloud(40, 32, 1.0, 0.3, 3),
        cloud(40, 32, 0.5, 0.02, 4),
        (gaussian_spectrum(torch.arange(1, 101, dtype=torch.float64) ** -1.2, sde), 100),
        (GaussianMixture(line, std=0.1, sde=sde), 1),
    ]


def test_on_problems_that_no_table_was_fitted_to():
    """Mean error over that of UniPC from the same noises, with the tables at the budgets that people use."""
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
