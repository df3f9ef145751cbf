"""The check of the default on held-out problems."""

from __future__ import annotations

import pytest
import torch

from benchmarks import held_out
from sde_diffusion import VPSDE, Gaussian
from sde_diffusion.sampling.reference_solution import rms
from solvers import SOLVERS, solve


def test_ratios_are_those_to_the_best_other_solver():
    model = Gaussian(
        torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64), sde=VPSDE()
    )
    mean, median = held_out.measure(model, [7], 16)[7]
    x1 = model.sde.prior((16, 3), seeds=range(16), dtype=torch.float64)
    truth = model.flow(x1, 1.0, 0.0)
    names = [name for name, solver in SOLVERS.items() if not solver.stochastic and not solver.adaptive]
    errors = {
        name: rms(solve(model.sde.probability_flow(model), x1, solver=name, nfe=7).x - truth)
        for name in names
        if SOLVERS[name].evaluations(1) <= 7
    }
    ours = errors.pop("pf-ode")
    assert len(errors) > 10
    assert mean == pytest.approx(float(ours.mean()) / min(float(e.mean()) for e in errors.values()), rel=1e-3)
    assert median == pytest.approx(float(ours.median()) / min(float(e.median()) for e in errors.values()), rel=1e-3)


def test_missing_data_is_named(tmp_path, monkeypatch, capsys):
    few = [("a Gaussian", Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())), ("CIFAR-10, wide", None)]
    monkeypatch.setattr(held_out, "problems", lambda data_dir: iter(few))
    monkeypatch.setattr("sys.argv", ["held_out", "--nfe", "5", "--samples", "2", "--data-dir", str(tmp_path)])
    held_out.main()
    out = capsys.readouterr().out
    assert "left out: CIFAR-10, wide" in out and "a Gaussian" in out and "geometric mean" in out


def test_problems_without_data_are_eight(tmp_path):
    found = dict(held_out.problems(tmp_path))
    assert len(found) == 10 and [name for name, model in found.items() if model is None] == [
        "CIFAR-10, narrow",
        "CIFAR-10, wide",
    ]


@pytest.mark.parametrize(("option", "message"), [("--nfe", "at least 1; got 0"), ("--samples", "at least 1; got 0")])
def test_numbers_below_one_are_refused(option, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["held_out", option, "0"])
    with pytest.raises(SystemExit):
        held_out.main()
    assert message in capsys.readouterr().err
