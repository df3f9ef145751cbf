from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion import evaluate, load, sample
from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.storage.checkpoint import export
from sde_diffusion.storage.locate import BUNDLED
from sde_diffusion.training.defaults import default_model
from solvers.diffusion.renoising import Renoising
from tests import command

run, refused = partial(command.invoke, "evaluate"), partial(command.refused, "evaluate")

FEW = ["--n", "80", "--draws", "3", "--metrics", "frechet", "--processes", "1"]


def evaluated(*args: str) -> dict[str, Any]:
    result = run(*args)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if line.startswith("figures ")]
    return json.loads(Path(line.removeprefix("figures ")).read_text())


@pytest.mark.filterwarnings("ignore:frechet. 80 samples")
def test_a_model_is_the_library_call_and_its_reference_can_be_kept() -> None:
    content = evaluated("bundled", *FEW, "--nfe", "4", "--save-reference", "r.safetensors")
    reference = FeatureStatistics.of(load_data("digits"), make_extractor("digits"))
    x = sample(load(BUNDLED), 80, nfe=4)
    expected = evaluate(x, reference, metrics=["frechet"], draws=3)["frechet"]
    found = content["runs"][0]["figures"]["frechet"]
    assert found["value"] == pytest.approx(expected.value, rel=1e-4)
    assert content["reference"]["fingerprint"] == load_data("digits").fingerprint
    assert content["features"] == dict(reference.extractor)
    again = evaluated("bundled", *FEW, "--nfe", "4", "--reference", "r.safetensors")
    assert again["runs"][0]["figures"]["frechet"]["value"] == found["value"]
    assert Path("evaluation/pf-ode-nfe4-2/evaluation.json").is_file()
    assert "error: the reference has features 'digits'" in refused(
        "bundled", *FEW, "--reference", "r.safetensors", "--features", "pixels"
    )


@pytest.mark.filterwarnings("ignore:frechet. 80 samples", "ignore:.*far outside of black and white")
def test_a_curve_has_every_solver_and_budget() -> None:
    content = evaluated("bundled", *FEW, "--nfe", "2,3", "--solver", "pf-ode,ddim", "--out", "curve")
    assert [(r["solver"], r["nfe"]) for r in content["runs"]] == [
        ("pf-ode", 2), ("pf-ode", 3), ("ddim", 2), ("ddim", 3),
    ]  # fmt: skip
    assert Path("curve/curve.png").read_bytes().startswith(b"\x89PNG")
    assert "curve exists already" in refused("bundled", *FEW, "--out", "curve")


@pytest.mark.filterwarnings("ignore:frechet. 80 samples")
def test_the_tuned_solver_of_a_model_is_evaluated() -> None:
    train = "train --data moons --predicts noise --steps 3 --batch-size 8 --width 8 --depth 1 --out runs/moons"
    assert CliRunner().invoke(app, train.split()).exit_code == 0
    asked = ("runs/moons", *FEW, "--nfe", "2", "--solver", "pf-ode,tuned")
    assert "sdediff tune" in refused(*asked)
    made = "tune runs/moons --nfe 2 --noise-samples 16 --held-out 16 --html tuned.html"
    assert CliRunner().invoke(app, made.split()).exit_code == 0
    default, tuned = evaluated(*asked, "--html", "quality.html")["runs"]
    for name, chart in (("tuned.html", "Distance to the reference solution"), ("quality.html", "frechet, best")):
        data = json.loads(Path(name).read_text().split('id="data">')[1].split("</script>")[0])
        assert [c["name"] for c in data["charts"][0]["curves"]] == data["solvers"] == ["pf-ode", "tuned"]
        assert data["charts"][0]["title"].startswith(chart)
        assert [(s["solver"], s["nfe"]) for s in data["gallery"]["shown"]] == [("pf-ode", 2), ("tuned", 2)]
    assert data["charts"][0]["curves"][1]["y"] == [tuned["figures"]["frechet"]["value"]]
    assert (default["solver"], tuned["solver"], tuned["nfe"]) == ("pf-ode", "tuned", 2)
    assert tuned["figures"]["frechet"]["value"] != default["figures"]["frechet"]["value"]
    evaluated("runs/moons", *FEW, "--grid", "1,0.4,0", "--solver", "ddim", "--html", "grid.html", "--out", "grid")
    data = json.loads(Path("grid.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert [grid["times"] for grid in data["grids"]] == [[1.0, 0.4, 0.0]]
    assert "Time grid" in Path("grid.html").read_text()
    [alone] = evaluated("runs/moons", *FEW, "--nfe", "2", "--solver", "tuned", "--budget", "--out", "alone")["runs"]
    assert alone["figures"] == tuned["figures"]


@pytest.mark.filterwarnings("ignore:frechet. 80 samples")
def test_a_distilled_model_is_drawn_with_its_own_sampler() -> None:
    moons = load_data("moons")
    model = default_model(moons, network_settings={"width": 8, "depth": 1})
    model.sampler = Renoising()
    data = {"name": "moons", "fingerprint": moons.fingerprint}
    path = str(export(model, "student.safetensors", data=data, step=0))
    [own] = evaluated(path, *FEW, "--html", "own.html", "--out", "own")["runs"]
    assert (own["solver"], own["nfe"]) == ("distilled", 2)
    shown = json.loads(Path("own.html").read_text().split('id="data">')[1].split("</script>")[0])["gallery"]["shown"]
    assert [(s["solver"], s["nfe"]) for s in shown] == [("distilled", 2)]
    [other] = evaluated(path, *FEW, "--solver", "ddim", "--nfe", "2", "--out", "other")["runs"]
    assert own["figures"] != other["figures"]
    for name in ("film", "trajectories"):
        assert CliRunner().invoke(app, ["show", name, path, "--n", "3"]).exit_code == 0
    with Image.open("film.gif") as film:
        assert film.n_frames == 3  # two evaluations


def test_a_file_of_samples_needs_a_reference_a_range_and_the_right_size() -> None:
    x = load_data("digits", split="test").x.numpy()
    np.savez("own.npz", x=x)
    assert "samples from files need --reference" in refused("own.npz")
    assert "--html" in refused("own.npz", "--reference", "digits", "--html", "a.html")
    metrics = ["--metrics", "kid", "--reference", "digits"]
    content = evaluated("own.npz", *metrics)
    kid = content["runs"][0]["figures"]["kid"]
    assert content["runs"][0]["n"] == 297 and abs(kid["value"]) < 5 * kid["standard_error"]
    np.savez("floats.npz", x=(x / 255).astype(np.float32))
    assert "not stated: give --range" in refused("floats.npz", *metrics)
    assert "--range takes 2 numbers" in refused("floats.npz", *metrics, "--range", "0,1,2")
    assert evaluated("floats.npz", *metrics, "--range", "0,1")["runs"][0]["figures"]["kid"] == kid
    np.savez("large.npz", x=np.zeros((300, 1, 16, 16), np.uint8))
    assert "samples of shape (1, 16, 16), but the reference 'digits'" in refused("large.npz", *metrics)
    np.savez("few.npz", x=x[:50])
    assert "--metrics kid,mmd," in refused("few.npz", "--reference", "digits", "--metrics", "frechet")
    assert "--budget needs a model" in refused("own.npz", *metrics, "--budget")


@pytest.mark.filterwarnings("ignore:frechet. 80 samples")
def test_a_range_is_refused_where_it_would_not_be_used() -> None:
    assert "leave it out for samples of a model" in refused("bundled", "--range", "0,1")
    assert "--range takes 2 numbers" in refused("bundled", "--range", "0")


def test_a_budget_adds_up() -> None:
    train = "train --data moons --predicts noise --steps 3 --batch-size 8 --width 8 --depth 1 --out runs/moons"
    assert CliRunner().invoke(app, train.split()).exit_code == 0
    content = evaluated("runs/moons", *FEW, "--nfe", "4", "--budget")
    budget = content["budget"]
    assert sum(e["value"] for e in budget["terms"].values()) == pytest.approx(budget["total"]["value"])
    figure = content["runs"][0]["figures"]["frechet"]
    assert budget["total"]["value"] == pytest.approx(figure["value"] + figure["bias"])  # the floor has the bias
    assert len(budget["held_out_loss"]) == 10
    assert Path("runs/moons/evaluation/pf-ode-nfe4/evaluation.json").is_file()
    assert torch.isfinite(torch.tensor([e["value"] for e in budget["held_out_loss"]])).all()


@pytest.mark.filterwarnings("ignore:.*far outside of black and white", "ignore:kid")
def test_samples_in_shards_are_measured_like_those_of_one_file() -> None:
    options = ["sample", "bundled", "--n", "90", "--nfe", "2", "--batch-size", "16"]
    for words in (["--out", "one"], ["--out", "many", "--shard-size", "32"]):
        assert CliRunner().invoke(app, [*options, *words]).exit_code == 0
    metrics = ["--reference", "digits", "--metrics", "kid", "--draws", "3"]
    one, many = (evaluated(source, *metrics, "--out", f"{source}-figures") for source in ("one", "many"))
    assert one["runs"] == many["runs"]
    Path("many/samples.json").unlink()
    assert "not all there yet: sdediff sample --resume many" in refused("many", *metrics)


@pytest.mark.filterwarnings("ignore:.*dimensions are few", "ignore:.*far outside of black and white")
def test_several_processes_give_the_figures_of_one(launch: Callable[..., Any]) -> None:
    options = ["bundled", *FEW, "--nfe", "2,3", "--batch-size", "16", "--metrics", "frechet,kid,neighbours"]
    one = evaluated(*options, "--out", "1")["runs"]

    def job(world: int) -> tuple[int, str]:
        result = run(*options, "--out", str(world))
        return result.exit_code, result.stdout

    for world in (2, 3):
        found = launch(world, lambda world=world: job(world))
        assert [code for code, _ in found] == [0] * world and [out for _, out in found[1:]] == [""] * (world - 1)
        runs = json.loads(Path(str(world), "evaluation.json").read_text())["runs"]
        for mine, theirs in zip(one, runs, strict=True):
            for name, figure in mine["figures"].items():
                assert theirs["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-12), name


def test_an_error_in_several_processes_says_in_which(launch: Callable[..., Any]) -> None:
    found = launch(2, lambda: (run("bundled", *FEW, "--reference", "none.npz").stderr, 0))
    assert found[0][0].startswith("error: no data at none.npz") and found[1][0].startswith(
        "error in process 1: no data"
    )


def test_processes_are_started_by_torchrun() -> None:
    said = refused("bundled", "--processes", "3")
    assert "torchrun --nproc-per-node 3 -m sde_diffusion --" in said
