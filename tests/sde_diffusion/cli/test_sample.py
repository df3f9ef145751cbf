from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.sampling.sampler import sample as library_sample
from sde_diffusion.storage import locate as places
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from tests import command

run, refused = partial(command.invoke, "sample"), partial(command.refused, "sample")

TRAIN = "train --data moons --steps 3 --batch-size 8 --width 8 --depth 1 --out runs/moons"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "moons"
    args = TRAIN.split()[:-1]
    assert CliRunner().invoke(app, [*args, str(folder)]).exit_code == 0
    return folder


@pytest.fixture
def moons(trained: Path) -> Path:
    """A run, alone in runs/."""
    return Path(shutil.copytree(trained, "runs/moons"))


def sampled(*args: str) -> Path:
    """The folder of the picture that the last line names."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    word, path = result.stdout.splitlines()[-1].split(" ", 1)
    assert word == "picture" and Path(path).read_bytes().startswith(b"\x89PNG")
    return Path(path).parent


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz") as file:
        return dict(file)


def test_the_command_of_the_first_page(moons: Path) -> None:
    folder = sampled("--solver", "pf-ode", "--nfe", "20")
    assert folder == moons / "samples" / "pf-ode-nfe20"
    expected = library_sample(load(moons), 2000, solver="pf-ode", nfe=20, seed=0)
    assert torch.equal(torch.from_numpy(arrays(folder)["x"]), expected)
    assert arrays(folder)["seeds"].tolist() == list(range(2000))


def test_without_a_run_the_bundled_model_is_sampled(moons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = export(load(moons), "bundled.safetensors", data=checkpoint_at(moons).data, step=3)
    shutil.rmtree("runs")
    monkeypatch.setattr(places, "BUNDLED", bundled)
    folder = sampled("--solver", "pf-ode", "--nfe", "20")
    assert folder == Path("samples/pf-ode-nfe20")
    assert json.loads((folder / "samples.json").read_text())["checkpoint"]["path"] == "bundled"
    assert "bit-equal" in run("--record", str(folder / "samples.json")).stdout
    bundled.unlink()
    assert "train one first: sdediff train --sde vp" in refused()


def test_a_run_a_checkpoint_and_a_file_are_one_model(moons: Path) -> None:
    export(load(moons), "moons.safetensors")
    same = [
        arrays(sampled(path, "--n", "3", "--nfe", "4"))["x"]
        for path in ("runs/moons", "runs/moons/checkpoints/step-000003", "moons.safetensors")
    ]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])


def test_options_reach_the_solver(moons: Path) -> None:
    folder = sampled(
        *[
            "--n",
            "5",
            "--solver",
            "ddpm",
            "--grid",
            "1,0.5,0.2,0",
            "--eta",
            "0.5",
            "--seed",
            "3",
            "--batch-size",
            "2",
        ],
        *["--device", "cpu", "--out", "mine"],
    )
    assert folder == Path("mine")
    record = json.loads((folder / "samples.json").read_text())
    assert record["grid"] == {"name": None, "times": [1.0, 0.5, 0.2, 0.0]}
    assert (record["n"], record["eta"], record["seed"], record["batch_size"]) == (5, 0.5, 3, 2)
    assert record["solver"]["name"] == "ddpm" and record["nfe"]["most"] == 3
    expected = library_sample(load(moons), 5, solver="ddpm", grid=[1, 0.5, 0.2, 0], eta=0.5, seed=3, batch_size=2)
    assert np.array_equal(arrays(folder)["x"], expected.numpy())
    named = sampled(*["--n", "2", "--steps", "6", "--grid", "karras"])
    assert json.loads((named / "samples.json").read_text())["grid"]["name"] == "karras"


def test_nothing_is_overwritten(moons: Path) -> None:
    folders = [sampled("--n", "2", "--nfe", "3", "--seed", str(k)) for k in range(3)]
    assert [f.name for f in folders] == ["pf-ode-nfe3", "pf-ode-nfe3-2", "pf-ode-nfe3-3"]
    first = (folders[0] / "samples.npz").read_bytes()
    # said before any work is done: the model is not even looked for
    message = refused("gone", "--out", str(folders[0]))
    assert "exists already; choose another folder with --out" in message
    assert (folders[0] / "samples.npz").read_bytes() == first
    Path("empty").mkdir()
    assert sampled("--n", "2", "--nfe", "3", "--out", "empty") == Path("empty")


@pytest.mark.parametrize("solver", ["pf-ode", "ddpm", "rk45"])
def test_the_card_makes_the_same_picture_again(moons: Path, solver: str) -> None:
    first = sampled("--n", "9", "--solver", solver, "--seed", "4")
    record = str(first / "samples.json")
    result = run("--record", record, "--out", "again")
    assert result.exit_code == 0, result.output
    assert "bit-equal to the samples of the record" in result.stdout
    for file in ("samples.png", "samples.npz", "samples.json"):
        assert (first / file).read_bytes() == Path("again", file).read_bytes()
    # a record that promises something else is found out
    changed = {**json.loads(Path(record).read_text()), "seed": 5}
    Path("changed.json").write_text(json.dumps(changed))
    assert "not bit-equal" in run("--record", "changed.json").stdout


def test_the_card_of_another_model_is_refused(moons: Path) -> None:
    record = sampled("--n", "2", "--nfe", "3") / "samples.json"
    train = [*TRAIN.split()[:-1], "runs/other", "--seed", "1"]
    assert CliRunner().invoke(app, train).exit_code == 0
    message = refused("runs/other", "--record", str(record))
    assert checkpoint_at("runs/moons").sha256 in message and checkpoint_at("runs/other").sha256 in message
    assert "leave out --n, --batch-size" in refused("--record", str(record), "--n", "3", "--batch-size", "2")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--solver pfode", "unknown solver 'pfode'; did you mean 'pf-ode'? Choices: adams"),
        ("--solver gone.py:Mine", "there is no file gone.py"),
        ("--grid karas", "did you mean 'karras'?"),
        ("--grid 1,a,0", "--grid takes a name or times separated by commas"),
        ("--grid 1,0.2,0.5,0", "strictly monotone"),
        ("--grid 1.5,0.2,0", "must lie in [0, 1]"),
        ("--nfe 0", "at least 1; got 0"),
        ("--solver pc --nfe 0", "at least 1; got 0"),
        ("--nfe 4 --steps 4", "give nfe or steps, not both"),
        ("--n 0", "n must be at least 1; got 0"),
        ("--batch-size 0", "batch_size must be at least 1; got 0"),
        ("--seed -1", "seed must be"),
        ("--eta 1 --solver ddim", "draws no noise"),
        ("--device gpu", "unknown device 'gpu'"),
        ("gone", "no model at gone"),
        ("runs", "runs is neither a run"),
        ("--record gone.json", "no record at gone.json"),
        ("--record runs/moons/config.json", "is no record of samples"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(moons: Path, args: str, message: str) -> None:
    before = sorted(Path().rglob("*"))
    assert message in refused(*args.split())
    assert sorted(Path().rglob("*")) == before


def test_checkpoints_that_are_torn_foreign_or_of_another_version(moons: Path) -> None:
    Path("foreign.safetensors").write_bytes(b"not this")
    assert "is torn, or no safetensors file" in refused("foreign.safetensors")
    step = moons / "checkpoints/step-000003"
    state = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps({**state, "format": 99}))
    assert "has format 99" in refused(str(step))
    weights = step / "ema.safetensors"
    (step / "state.json").write_text(json.dumps(state))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "ema.safetensors is damaged" in refused(str(step))


def test_a_traceback_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("gone").exception.__class__ is SystemExit
    monkeypatch.setenv("SDEDIFF_TRACEBACK", "1")
    assert isinstance(run("gone").exception, FileNotFoundError)


def test_profile_names_the_range_of_times() -> None:
    result = CliRunner().invoke(app, ["sample", "bundled", "--n", "2", "--nfe", "8", "--profile", "--out", "profiled"])
    assert result.exit_code == 0, result.output
    assert "half of the error is made between t = " in result.output


def test_a_tolerance_chooses_and_the_card_says_why(moons: Path) -> None:
    result = run("--n", "4", "--tolerance", "0.3", "--out", "rough")
    assert result.exit_code == 0, result.output
    record = json.loads(Path("rough/samples.json").read_text())
    choice = record["choice"]
    assert f"chosen: {choice['reason']}" in result.stdout
    assert (choice["solver"], choice["nfe"]) == (record["solver"]["name"], record["nfe"]["asked"])
    assert choice["bound"] <= choice["tolerance"] == 0.3
    expected = library_sample(load(moons), 4, solver=choice["solver"], nfe=choice["nfe"])
    assert np.array_equal(arrays(Path("rough"))["x"], expected.numpy())
    assert run("--record", "rough/samples.json", "--out", "again").exit_code == 0
    assert Path("again/samples.json").read_bytes() == Path("rough/samples.json").read_bytes()
    alone = run("--n", "4", "--tolerance", "0.3", "--solver", "ddim", "--out", "ddim")
    assert "chosen: ddim with" in alone.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--tolerance 0", "a tolerance is a positive distance"),
        ("--tolerance 0.1 --nfe 5", "leave out --nfe"),
        ("--tolerance 0.1 --grid karras --eta 1", "leave out --grid, --eta"),
        ("--tolerance 0.1 --solver sde", "sde draws noise"),
    ],
)
def test_a_tolerance_that_cannot_be_met_as_asked(moons: Path, args: str, message: str) -> None:
    assert message in refused(*args.split())


def test_the_profile_is_of_the_solver_that_drew(moons: Path) -> None:
    Path("own.py").write_text("from solvers.exponential.adams import ExponentialAdams\nmine = ExponentialAdams(2)\n")
    result = run("--solver", "own.py:mine", "--nfe", "6", "--n", "4", "--profile")
    assert result.exit_code == 0 and "Local error by time" in result.stdout, result.output
    record = next(Path("runs").rglob("samples.json"))
    refused = run("--record", str(record), "--profile")
    assert refused.exit_code == 2 and "leave out --record" in refused.stderr


def test_a_run_that_was_tuned_is_sampled_by_its_tuned_solver_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "moons"
    trained = CliRunner().invoke(app, [*TRAIN.split()[:-1], str(folder), "--tune", "2"])
    assert trained.exit_code == 0, trained.output
    file = folder / "tuned" / "nfe-2.json"
    assert file.is_file() and "held-out noise samples: pf-ode" in trained.stdout
    own = run(str(folder), "--nfe", "2", "--n", "4")
    assert f"the solver that was tuned for this model: {file}; --solver pf-ode" in own.stdout
    assert "4 samples by tuned, 2 evaluations" in own.stdout
    for args in (["--solver", "pf-ode", "--nfe", "2"], ["--nfe", "3"]):
        other = run(str(folder), *args, "--n", "4")
        assert other.exit_code == 0 and "samples by pf-ode" in other.stdout and "was tuned" not in other.stdout
    shutil.copy(file, folder / "tuned" / "nfe-4.json")  # for 2 evaluations, whatever its name says
    assert "samples by pf-ode" in run(str(folder), "--nfe", "4", "--n", "4").stdout
    wrong = CliRunner().invoke(app, [*TRAIN.split()[:-1], str(tmp_path / "other"), "--tune", "x"])
    assert wrong.exit_code != 0 and not (tmp_path / "other").exists()
