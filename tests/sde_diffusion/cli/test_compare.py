from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion import sample
from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.storage import locate as places
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.training.defaults import default_model
from tests import command

run = partial(command.invoke, "compare")

FEW = ["--n", "16", "--paired", "8", "--reference-steps", "200"]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small untrained model of points in 2-D, in place of the bundled one."""
    moons = load_data("moons")
    untrained = default_model(moons, network_settings={"width": 8, "depth": 1})
    path = export(untrained, "model.safetensors", data={"name": "moons", "fingerprint": moons.fingerprint}, step=0)
    monkeypatch.setattr(places, "BUNDLED", path)
    return path


def test_a_shortlist_on_the_bundled_model() -> None:
    result = run(*FEW)
    assert result.exit_code == 0, result.output
    for word in ("pf-ode", "ddim", "stochastic: no paired error", "best", "the flow's own error is at most"):
        assert word in result.stdout
    found = json.loads(Path("compare/compare.json").read_text())
    assert (
        found["checkpoint"]["path"] == "bundled"
        and found["checkpoint"]["sha256"] == checkpoint_at("model.safetensors").sha256
    )
    assert {row["nfe"] for row in found["rows"]} == {5, 10, 20}
    for row in found["rows"]:
        low, high = row["frechet_interval"]
        assert low < row["frechet"] < high and row["frechet"] + row["frechet_bias"] > 0 < row["frechet_bias"]
    assert Path("compare/compare.png").read_bytes().startswith(b"\x89PNG")
    assert run(*FEW, "--solvers", "ddim", "--nfe", "3").exit_code == 0 and Path("compare-2").is_dir()


def test_the_initial_noise_is_that_of_sample_and_json_agrees() -> None:
    result = run(
        "model.safetensors", *FEW, "--solvers", "ddim,sde", "--nfe", "4,4", "--seed", "7", "--json", "--out", "c"
    )
    found = json.loads(result.stdout)
    assert found == {k: v for k, v in json.loads(Path("c/compare.json").read_text()).items() if k in found}
    ddim, sde = found["rows"]
    assert (ddim["solver"], sde["solver"], sde["errors"]) == ("ddim", "sde", None)
    fine = sample(load("model.safetensors"), 8, solver="pf-ode", nfe=200, seed=7)
    x = sample(load("model.safetensors"), 8, solver="ddim", nfe=4, seed=7)
    errors = (x - fine).square().mean(1).sqrt()
    assert torch.allclose(torch.tensor(ddim["errors"]), errors, rtol=0.05, atol=2 * found["reference_error"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--solvers ddmi", "unknown solver 'ddmi'"),
        ("--nfe 0", "NFE of at least 1"),
        ("--nfe five", "--nfe takes whole numbers separated by commas"),
        ("--n 1", "an interval needs at least 2 samples; got n=1"),
        ("--paired 1", "an interval needs at least 2 samples"),
        ("--reference-steps 3", "at least 4 steps; got 3"),
        ("gone", "no model at gone"),
        ("empty", "empty is neither a run"),
        ("--data digits", "samples of digits have shape (1, 8, 8), those of the model (2,)"),
        ("--out full", "full exists already"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(args: str, message: str) -> None:
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/file").touch()
    before = sorted(Path().rglob("*"))
    result = run(*args.split())
    assert result.exit_code == 2, result.output
    assert message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert sorted(Path().rglob("*")) == before


def test_a_run_without_a_checkpoint_is_refused() -> None:
    train = "train --data moons --steps 2 --batch-size 4 --width 8 --depth 1 --out run"
    assert CliRunner().invoke(app, train.split()).exit_code == 0
    for folder in Path("run/checkpoints").iterdir():
        folder.rename(folder.with_name(f"old-{folder.name}"))
    result = run("run")
    assert result.exit_code == 2 and "no whole checkpoint in run" in result.stderr


def test_a_model_that_does_not_know_its_data_has_no_distances() -> None:
    export(load("model.safetensors"), "alone.safetensors")
    result = run("alone.safetensors", *FEW, "--solvers", "ddim", "--nfe", "4")
    assert result.exit_code == 0 and "does not say what it was trained on" in result.stderr
    assert "Frechet" not in result.stdout
    assert json.loads(Path("compare/compare.json").read_text())["rows"][0]["sliced_wasserstein"] is None


def test_two_solvers_of_one_name_are_both_compared() -> None:
    for file, order in (("a.py", 1), ("b.py", 2)):
        text = f"from solvers.exponential.adams import ExponentialAdams\nmine = ExponentialAdams({order})\n"
        Path(file).write_text(text)
    shown = run("bundled", "--solvers", "a.py:mine,b.py:mine", "--nfe", "6", *["--n", "64", "--paired", "2"], "--json")
    rows = {row["solver"]: row["error"] for row in json.loads(shown.stdout)["rows"]}
    assert set(rows) == {"mine", "b.py:mine"} and rows["mine"] != rows["b.py:mine"]


def test_the_tuned_solvers_of_the_model_take_part() -> None:
    asked = ["model.safetensors", *FEW, "--solvers", "pf-ode,tuned", "--nfe", "2,3", "--json"]
    result = run(*asked)
    assert result.exit_code != 0 and "sdediff tune" in result.output
    for nfe in ("2", "3"):
        made = ["tune", "model.safetensors", "--nfe", nfe, "--noise-samples", "16", "--held-out", "16"]
        assert CliRunner().invoke(app, made).exit_code == 0
    rows = {(row["solver"], row["nfe"]): row for row in json.loads(run(*asked).stdout)["rows"]}
    for nfe in (2, 3):
        assert rows["tuned", nfe]["errors"] != rows["pf-ode", nfe]["errors"] and rows["tuned", nfe]["used"] == nfe


def test_a_report_has_the_rows_the_samples_and_the_line_that_made_it() -> None:
    result = run(*FEW, "--solvers", "ddim,sde", "--nfe", "4,8", "--html", "a b.html")
    assert result.exit_code == 0, result.output
    assert "report a b.html" in result.stdout
    text = Path("a b.html").read_text()
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["solvers"] == ["ddim", "sde"] and data["gallery"]["kind"] == "points" and data["gallery"]["count"] == 16
    assert {(g["solver"], g["nfe"]) for g in data["grids"]} == {("ddim", 4), ("ddim", 8), ("sde", 4), ("sde", 8)}
    rows = json.loads(Path("compare/compare.json").read_text())["rows"]
    (error,) = (c for c in data["charts"] if c["title"].startswith("Distance to the reference"))
    assert error["curves"][0]["y"] == [row["error"] for row in rows if row["solver"] == "ddim"]
    assert "sdediff compare --n 16" in text and "--html &#39;a b.html&#39;" in text
    assert checkpoint_at("model.safetensors").sha256 in text
    result = run(*FEW, "--html", "a b.html")
    assert result.exit_code == 2 and "a b.html exists" in result.output
    result = run(*FEW, "--html", "report.pdf")
    assert result.exit_code == 2 and ".html" in result.output
