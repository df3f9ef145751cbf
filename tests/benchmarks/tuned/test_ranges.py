"""The benchmark of tuning on every range: its tables, and a cell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.tuned import ranges as tuned_ranges
from benchmarks.tuned.ranges import Problem, measure, models, report
from sde_diffusion import VPSDE, Gaussian


def test_ratios_are_geometric_means_of_errors() -> None:
    cell = {
        "tuned": [0.1, 0.01],
        "pf-ode": [0.2, 0.1],
        "own": ["unipc karras", 0.4, 0.1],
        "peer": ["a", 0.2, 0.1],
    }
    other = {**cell, "tuned": [0.4, 0.01]}
    text = report({"3 | rings, 2 | 1 min": {"5": cell}, "3 | images, 768 | 1 min": {"5": other}}, "c")
    assert "| 3 | 1.00 / 0.10 (0.50, 1.00) | 1.00 / 0.10 (0.50, 1.00) |" in text
    assert "| 3 | rings, 2 | 0.1; 0.50 / 0.10 (0.25, 0.50) |" in text
    assert "1 of 2 cells by the mean, 0 by mean" in text


@pytest.mark.slow
def test_a_cell_has_all_errors_and_keeps_those_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuned_ranges, "rivals", list)
    model = Gaussian(torch.zeros(3), torch.tensor([1.0, 0.3, 0.01]), sde=VPSDE())
    problem = Problem.of(model, tmp_path / "gaussian.pt")
    found = measure(problem, [4], 0.02)["4"]
    assert found["tuned"][0] < found["own"][1] and found["tuned"][0] < found["pf-ode"][0] and found["peer"] is None
    again = Problem.of(model, tmp_path / "gaussian.pt")
    assert torch.equal(again.truth, problem.truth) and again.known.errors == problem.known.errors
    assert len(problem.known.errors) == 11  # two solvers on five grids, and pf-ode


def test_networks_are_models_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    names = [name for name, _ in models([], [], ["digits", "EDM"])]
    assert names == ["own networks | digits", "CIFAR-10 networks | EDM"]
