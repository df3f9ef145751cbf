"""A table that starts from the mean: its law, its evaluations, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, Gaussian
from sde_diffusion.sde import SDE, CosineVPSDE, Flow
from sde_diffusion.storage.solver_file import load_solver, save_solver
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import SOLVERS, ReverseProcess, Solver, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.table import Row, Table

MEAN = (0.5, -1.0, 2.0)


def started(sde: VPSDE | Flow, evaluations: int) -> MeanStart:
    return MeanStart(compile_table(SOLVERS["unipc"], sde, evaluations + 1), MEAN)


def test_it_is_the_longer_table_for_a_model_that_knows_the_mean_at_the_start() -> None:
    sde = VPSDE()
    model = Gaussian(torch.tensor(MEAN).double(), torch.tensor([0.3, 0.2, 0.1]).double(), sde=sde)
    seen: list[float] = []

    def knowing(x: Tensor, t: Tensor) -> Tensor:
        return torch.tensor(MEAN, dtype=x.dtype).expand_as(x) if float(t[0]) == 1 else model.denoise(x, t)

    def counted(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return model.denoise(x, t)

    solver = started(sde, 6)
    x1 = sde.prior((5, 3), seeds=range(5), dtype=torch.float64)
    found = solve(ReverseProcess(counted, sde), x1, solver=solver, nfe=6)
    longer = solve(ReverseProcess(knowing, sde), x1, solver=solver.table, nfe=7)
    assert torch.equal(found.x, longer.x)
    assert found.nfe.tolist() == [6] * 5 and seen == list(solver.table.times[1:-1])
    assert len(found.times) == 7


def test_the_mean_costs_what_its_error_in_d_is_worth() -> None:
    """From rho = 152 nothing; from 1.1 the table with an evaluation there is better."""
    found = []
    for sde in (VPSDE(), VPSDE(beta_max=1.5)):
        model = Gaussian(torch.tensor(MEAN).double(), torch.tensor([0.3, 0.2, 0.1]).double(), sde=sde)
        x1 = sde.prior((64, 3), seeds=range(64), dtype=torch.float64)
        ode, exact = sde.probability_flow(model), model.flow(x1, 1.0, 0.0)
        solver = started(sde, 6)
        found.append([rms(solve(ode, x1, solver=s).x - exact) for s in (solver, solver.table)])
    (mean, more), (low, better) = found
    assert abs(mean - more) < 0.01 * more and low > 2 * better


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_its_file_serves_every_process_of_the_range(tmp_path: Path) -> None:
    made = started(Flow(), 4).on(Flow())
    assert restore_solver(describe_solver(made)) == made
    save_solver(tmp_path / "s.json", made, Flow())
    other = load_solver(tmp_path / "s.json", CosineVPSDE())
    x1 = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)

    def run(sde: SDE, solver: Solver) -> Tensor:
        model = Gaussian(torch.tensor(MEAN).double(), torch.tensor([0.3, 0.2, 0.1]).double(), sde=sde)
        return solve(sde.probability_flow(model), x1, solver=solver, nfe=4).x

    torch.testing.assert_close(run(CosineVPSDE(), other), run(Flow(), made), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="another process"):
        run(VPSDE(), made)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="needs two rows"):
        MeanStart(Table((1.0, 0.0), (Row(0.0, (1.0,)),)), MEAN)
    sde = VPSDE()
    solver = started(sde, 3)
    model = Gaussian(torch.zeros(2), torch.ones(2), sde=sde)
    with pytest.raises(ValueError, match=r"samples of 3 entries, and these have the shape \(2,\)"):
        solve(sde.probability_flow(model), sde.prior((4, 2)), solver=solver, nfe=3)
    with pytest.raises(ValueError, match="made for 3 evaluations, not for 4"):
        solve(sde.probability_flow(model), sde.prior((4, 2)), solver=solver, nfe=4)
    with pytest.raises(ValueError, match="own times"):
        solve(sde.probability_flow(model), sde.prior((4, 2)), solver=solver, grid=solver.table.times)
