from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.data import as_data, load_data
from sde_diffusion.likelihood.lower_bound import elbo
from sde_diffusion.likelihood.report import levels_of, likelihood_data, table_of_terms
from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.sde import Flow
from sde_diffusion.storage.checkpoint import checkpoint_at
from tests.command import run

TRAIN = "train --data moons --sde flow --steps 2 --batch-size 4 --width 8 --depth 1 --out run"
OPTIONS = "--n 6 --solver adams --steps 10 --t-min 1e-3"


def test_a_run_is_measured_on_held_out_data() -> None:
    run(*TRAIN.split())
    options = OPTIONS.split()
    shown = run("likelihood", "run", *options, "--elbo", "12", "--out", "figures")
    report = json.loads(Path("figures/likelihood.json").read_text())
    assert report["checkpoint"]["sha256"] == checkpoint_at("run").sha256
    assert report["data"]["n"] == 6 and report["data"]["fingerprint"] == load_data("moons", split="test").fingerprint
    assert f"{report['nats']['mean']:.4f}" in shown and "bits" not in shown
    parts = report["elbo"]
    assert parts["nats"]["mean"] == pytest.approx(-(parts["prior"] + parts["sum_of_steps"] + parts["decoder"]))
    assert Path("figures/elbo.png").read_bytes()[:4] == b"\x89PNG"
    # In batches of 2 the figures are the same.
    run("likelihood", "run", *options, "--batch-size", "2", "--elbo", "12", "--out", "again")
    again = json.loads(Path("again/likelihood.json").read_text())
    assert again["elbo"]["nats"]["mean"] == pytest.approx(parts["nats"]["mean"], rel=1e-5)
    assert again["nats"]["mean"] == pytest.approx(report["nats"]["mean"], rel=1e-5)
    assert "again exists already" in CliRunner().invoke(app, ["likelihood", "run", *options, "--out", "again"]).stderr


def test_levels_are_counted_and_spread_over_their_ranges() -> None:
    digits = load_data("digits", split="test")
    assert levels_of(digits.x) == 17
    assert levels_of(torch.arange(256, dtype=torch.uint8)) == 256
    x, bins = likelihood_data(digits, 20, seed=1)
    assert bins == 17 and x.dtype == torch.float64
    chosen = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))[:20]
    assert (x - digits.batch(chosen)).abs().max() <= 1 / 16 + 2 / 255
    assert likelihood_data(as_data([[1.5, 2.5]]), 1, 0)[1] is None


def test_the_table_has_all_of_the_bound() -> None:
    model = Gaussian(torch.zeros(2), torch.ones(2), sde=Flow())
    bound = elbo(model, torch.zeros(3, 2).double(), steps=25)
    table = table_of_terms(bound)
    assert sum(nats for _, nats in table) == pytest.approx(-float(bound.nats.mean()))
    assert [name for name, _ in table][:2] == ["L_0", "L, t = 0.080 to 0.160"] and len(table) == 12


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--n 0", "n must be from 1 to 297, got 0"),
        ("--trace exat", "exact"),
        ("--solver heun", "steps=100"),
        ("--t-min 0", "in (0, 1)"),
        ("--data nothing.npy", "nothing.npy"),
    ],
)
def test_bad_options_are_sentences(args: str, message: str) -> None:
    result = CliRunner().invoke(app, ["likelihood", "bundled", *args.split()])
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr
