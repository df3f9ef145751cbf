"""The benchmark of tuning for networks of others: skipped with a reason, and whole on a small folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import foreign

LOADERS = '''
import torch
from torch import nn
from sde_diffusion import VPSDE, ScoreModel

class Net(nn.Module):
    """D of N(0, diag(c)) with a term that is not linear and ends with the noise."""

    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.tensor([1.0, 0.2, 0.03]))

    def forward(self, x, t):
        alpha, sigma = (c[:, None].to(x) for c in VPSDE().marginal(t.double()))
        return alpha * self.c / (alpha**2 * self.c + sigma**2) * x + 0.05 * alpha * sigma * torch.sin(2 * x)

MODELS = {"small": lambda: load("small")}

def load(name):
    assert name == "small"
    return ScoreModel(Net(), VPSDE(), "data", shape=(3,)).requires_grad_(False)
'''


def test_without_a_folder_the_reason_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["foreign", "--foreign-dir", "nowhere"])
    foreign.main()
    assert capsys.readouterr().out == "skipped: nowhere has no loaders.py\n"
    assert "pass their folder with --foreign-dir" in str(foreign.names_in(None))


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--cpu-time"]], ids=["command", "here"])
def test_a_model_of_a_folder_is_tuned_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "loaders.py").write_text(LOADERS)
    monkeypatch.setattr(foreign, "REFERENCE_STEPS", 120)
    options = ["--nfe", "4", "--minutes", "0.05", "--samples", "8", "--out", "results"]
    monkeypatch.setattr("sys.argv", ["foreign", "--foreign-dir", str(tmp_path / "models"), *options, *more])
    foreign.main()
    content = json.loads(Path("results/foreign.json").read_text())
    assert ("--cpu-time" in content["command"]) == bool(more)
    [row] = content["models"]["small"]["rows"]
    assert row["nfe"] == 4 and content["models"]["small"]["tune_cpu_seconds"] > 0
    assert 0 < row["tuned"] < 1.1 * row["pf-ode"]  # as good on other initial noise; three seconds find little here
    assert content["models"]["small"]["reference_error"] < 0.2 * row["tuned"]
    if row["configurations"]:
        assert row["configurations"] > 60 and row["best peer"] > 0 and row["best peer is"].startswith("diffusers: ")
    assert f"| small | 4 | {row['pf-ode']:.4g} | {row['tuned']:.4g} |" in Path("results/foreign.md").read_text()
