"""Tables against the solvers they are made from."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import VPSDE, CosineVPSDE, Flow, GaussianMixture
from solvers import SOLVERS, ReverseProcess, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.table import Row, Table

# Two evaluations at one time are no table: Heun's methods, and the start of adams.
ABLE = [
    name
    for name, solver in SOLVERS.items()
    if not (solver.stochastic or solver.adaptive)
    and solver.needs[0] is ReverseProcess
    and name not in ("adams", "heun", "edm")
]


def mixture(sde):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(5, 3, dtype=torch.float64, generator=g)
    return GaussianMixture(means, std=0.2, sde=sde)


@pytest.mark.parametrize("nfe", [1, 2, 5, 9])
@pytest.mark.parametrize("name", ABLE)
def test_a_table_gives_the_samples_of_its_solver(name, nfe):
    sde = VPSDE()
    ode = sde.probability_flow(mixture(sde))
    x1 = sde.prior((6, 3), seeds=range(6), dtype=torch.float64)
    grid = "power" if name == "pf-ode" else None  # on its own grid its numbers depend on the sample
    table = compile_table(SOLVERS[name], sde, nfe, grid)
    own = solve(ode, x1, solver=name, nfe=nfe, grid=grid)
    ours = solve(ode, x1, solver=table, nfe=len(table.rows))
    torch.testing.assert_close(ours.x, own.x, rtol=1e-11, atol=1e-12)
    assert ours.nfe.tolist() == own.nfe.tolist()


def test_a_table_starts_where_alpha_is_zero():
    sde = CosineVPSDE()
    ode = ReverseProcess(mixture(sde), sde)
    x1 = sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    own = solve(ode, x1, solver="unipc", nfe=4).x
    table = compile_table(SOLVERS["unipc"], sde, 4)
    torch.testing.assert_close(solve(ode, x1, solver=table, nfe=4).x, own, rtol=1e-11, atol=1e-12)


def test_a_solver_whose_coefficients_depend_on_the_sample_is_no_table():
    with pytest.raises(
        ValueError, match="ProbabilityFlow is no table with 8 steps on this grid: its coefficients depend"
    ):
        compile_table(SOLVERS["pf-ode"], VPSDE(), 8)


@pytest.mark.parametrize(("name", "kept"), [("ddim", 1), ("dpm++2m", 2), ("dpm++3m", 3)])
def test_rows_hold_the_values_that_the_solver_uses_and_no_rounding(name, kept):
    rows = compile_table(SOLVERS[name], VPSDE(), 9).rows
    assert max(len(row.weights) for row in rows) == kept


def test_rows_mean_what_they_say():
    # D = 1 whatever x: x_1 = 0.5 x + 0.25, then x_0 = 2 x_1 + 3 D_1 - D_0.
    table = Table((1.0, 0.5, 0.0), (Row(0.5, (0.25,)), Row(2.0, (3.0, -1.0))))
    ode = ReverseProcess(lambda x, t: torch.ones_like(x), VPSDE())
    out = solve(ode, torch.full((1, 1), 8.0), solver=table)
    assert float(out.x) == 2 * (0.5 * 8 + 0.25) + 3 - 1


def test_another_budget_or_grid_is_refused():
    table = compile_table(SOLVERS["ddim"], VPSDE(), 4)
    ode = ReverseProcess(lambda x, t: x, VPSDE())
    x = torch.ones(1, 1)
    with pytest.raises(ValueError, match="made for 4 evaluations, not for 5"):
        solve(ode, x, solver=table, nfe=5)
    with pytest.raises(ValueError, match="leave out the grid"):
        solve(ode, x, solver=table, grid=[1.0, 0.5, 0.2, 0.1, 0.0])
    with pytest.raises(ValueError, match="decrease from at most 1 to 0"):
        Table((0.5, 1.0, 0.0), (Row(0.0, (1.0,)),) * 2)
    with pytest.raises(ValueError, match="one time more"):
        Table((1.0, 0.0), ())


@pytest.mark.parametrize("name", ["ddpm", "rk45"])
def test_what_is_no_table_is_refused(name):
    with pytest.raises(ValueError, match="deterministic solvers with fixed steps"):
        compile_table(SOLVERS[name], VPSDE(), 5)


def test_a_table_made_for_one_process_is_refused_on_another():
    table = compile_table(SOLVERS["dpm++2m"], VPSDE(), 6)
    x = torch.ones(1, 3, dtype=torch.float64)
    for other in (Flow(), VPSDE(beta_max=15.0)):
        with pytest.raises(ValueError, match=r"made for another process: at t = .* sigma / alpha is"):
            solve(other.probability_flow(mixture(other)), x, solver=table)
    assert solve(VPSDE().probability_flow(mixture(VPSDE())), x, solver=table).nfe.tolist() == [6]
