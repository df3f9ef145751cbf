"""A solver in a file runs on every process with the same range of sigma / alpha, and on no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sde_diffusion import CosineVPSDE, Flow, GaussianMixture, load_solver, save_solver, tune
from sde_diffusion.sde import EDM, SDE, VPSDE
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table

MEANS = torch.tensor([[-1.0, 0.3], [0.8, 1.0], [0.1, -0.7]], dtype=torch.float64)


def model(sde: SDE) -> GaussianMixture:
    return GaussianMixture(MEANS, 0.15, sde=sde)


def test_a_tuned_solver_gives_the_same_samples_on_a_process_of_the_same_range(tmp_path: Path) -> None:
    made = tune(model(Flow()), 4, noise_samples=16, held_out=16)
    save_solver(tmp_path / "own" / "four.json", made, Flow())
    x1 = Flow().prior((16, 2), dtype=torch.float64)  # pure noise at t = 1 on both
    own = solve(Flow().probability_flow(model(Flow())), x1, solver=made, nfe=4).x
    for sde in (Flow(), CosineVPSDE()):
        again = load_solver(tmp_path / "own" / "four.json", sde)
        x = solve(sde.probability_flow(model(sde)), x1, solver=again, nfe=4).x
        torch.testing.assert_close(x, own, rtol=0, atol=1e-9)


def test_finite_ranges_and_other_units_of_time(tmp_path: Path) -> None:
    vp = VPSDE()
    alpha, sigma = (float(c) for c in vp.marginal(1.0))
    edm = EDM(sigma_max=sigma / alpha)
    table = compile_table(SOLVERS["dpm++2m"], vp, 6)
    save_solver(tmp_path / "s.json", table, vp)
    other = load_solver(tmp_path / "s.json", edm)
    x1 = vp.prior((8, 2), dtype=torch.float64)
    x = solve(vp.probability_flow(model(vp)), x1, solver=table, nfe=6).x
    y = solve(edm.probability_flow(model(edm)), x1 / alpha, solver=other, nfe=6).x
    torch.testing.assert_close(y, x, rtol=0, atol=1e-8)
    assert load_solver(tmp_path / "s.json", vp).times == pytest.approx(table.times)


def test_other_ranges_and_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(FileNotFoundError, match="save_solver"):
        load_solver(path, VPSDE())
    save_solver(path, compile_table(SOLVERS["ddim"], VPSDE(), 3), VPSDE())
    with pytest.raises(ValueError, match=r"start from sigma / alpha = 152\.\d+, and this one, EDM.* starts from 80"):
        load_solver(path, EDM())
    content = json.loads(path.read_text())
    for change in ({"rows": content["rows"][:1]}, {"rho": "x"}, {"rows": [[None]] * 3}, {"kind": "other"}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"damaged|is no solver"):
            load_solver(path, VPSDE())


def test_a_solver_that_is_no_table_is_stored_with_its_settings(tmp_path: Path) -> None:
    save_solver(tmp_path / "s.json", SOLVERS["unipc"], VPSDE())
    assert load_solver(tmp_path / "s.json", EDM()) == SOLVERS["unipc"]
