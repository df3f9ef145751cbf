"""Conditions and classifiers from the command line: trained, sampled for, recorded, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.data import load_data
from tests.command import invoke, refused, run

TRAIN = "train --steps 4 --batch-size 16 --device cpu"
FEW = "--n 40 --nfe 2 --metrics mmd --processes 1 --draws 4"
COMPARED = "--n 8 --paired 4 --reference-steps 8"


def record(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "samples.json").read_text())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of images, points with a table of measurements, pets in folders; and runs on them."""
    folder = tmp_path_factory.mktemp("made")
    digits = load_data("digits")
    for k in range(40):
        image = digits.x[k * 37, 0].numpy()
        small = image.reshape(4, 2, 4, 2).mean((1, 3)).astype(np.uint8)
        for place, content in (("high", image), ("low", small), (f"pets/{'cat' if k % 2 else 'dog'}", image)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / place / f"{k}.png")
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.savetxt(folder / "c.csv", 300 + 20 * x, delimiter=",", header="warm,cold", comments="")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pairs = "--data high --condition low --resize-condition bilinear --condition-noise 0.5 --channels 4"
        run(f"{TRAIN} {pairs} --out pairs")
        run(f"{TRAIN} --data x.npy --condition c.csv:cold --drop-condition 0 --width 8 --out points")
        run(f"{TRAIN} --data pets --labels --channels 4 --out pets-run")
        run(f"{TRAIN} --classifier --out classifier")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_samples_for_condition_images_are_recorded_and_made_again() -> None:
    run("sample pairs --condition low --condition-noise 0.3 --guidance 2 --n 5 --nfe 4 --out one")
    entry = record("one")["guidance_rule"]["condition"]
    assert entry["kind"] == "image" and entry["shape"] == [1, 4, 4] and entry["count"] == 40 and entry["noise"] == 0.3
    assert record("one")["data"]["condition"]["noise"] == 0.5
    assert "name them: --condition low" in refused("sample pairs --record one/samples.json")
    assert "bit-equal" in run("sample pairs --record one/samples.json --condition low --out two")
    assert "but high has" in refused("sample pairs --record one/samples.json --condition high --out three")
    run("sample pairs --condition low/7.png --n 2 --nfe 2 --out single")
    run("sample pairs --n 2 --nfe 2 --out free")  # conditions were dropped in training


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:mmd", "ignore:neighbours")
def test_vectors_of_a_table_condition_every_command() -> None:
    run("sample points --condition c.csv:cold --n 4 --nfe 2 --out one")
    assert record("one")["data"]["condition"]["dropped"] == 0
    run("likelihood points --condition c.csv:cold --n 2 --trace exact --tolerance 0.1")
    run("evaluate points --condition c.csv:cold --n 40 --nfe 2 --metrics mmd --processes 1 --draws 4 --out quality")
    run(
        "compare points --condition c.csv:cold --solvers ddim,heun --nfe 2 --n 8 --paired 4 --reference-steps 8 --out c"
    )
    run("tune points --condition c.csv:cold --nfe 2 --noises 16 --held-out 4")
    assert len(list(Path("points/tuned").glob("nfe-2*.json"))) == 1


@pytest.mark.usefixtures("here")
def test_a_resumed_run_finds_its_conditions_again() -> None:
    before = json.loads(Path("points/config.json").read_text())["data"]
    run("train --resume --out points --steps 6")
    assert json.loads(Path("points/config.json").read_text())["data"] == before
    assert 'condition = "c.csv:cold"' in Path("points/config.toml").read_text()
    Path("c.csv").write_text("warm,cold\n" + "1,2\n" * 60)
    assert "cannot be resumed with another data" in refused("train --resume --out points --steps 8")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample points --n 2", "the model needs a condition, vector=1: give --condition PATH"),
        ("sample points --n 2 --condition c.csv", "shape (2,); the model takes vector=1"),
        ("sample points --n 2 --condition c.csv:warn", "did you mean 'warm'?"),
        ("sample points --n 2 --condition none.csv", "no conditions at none.csv"),
        ("sample points --n 2 --condition c.csv:cold --guidance 2", "which was never trained: --drop-condition 0"),
        ("sample points --n 2 --condition c.csv:cold --condition-noise 0.1", "leave it out"),
        ("sample pairs --n 2 --condition high", "shape (1, 8, 8); the model takes image=[1, 4, 4]"),
        ("sample pairs --n 2 --condition low --condition-noise 2", "is in [0, 1]; got 2.0"),
        ("sample pairs --n 2 --condition-noise 0.1", "no effect without --condition"),
        ("sample bundled --condition c.csv", "trained without conditions"),
        ("sample pets-run --label cats", "did you mean 'cat'? Its classes: cat, dog"),
        ("sample classifier", "is a classifier of noisy samples"),
        ("sample bundled --classifier pairs --label 3", "is no classifier"),
        ("sample bundled --classifier classifier", "needs labels to guide to"),
        ("sample points --classifier classifier --label 3 --condition c.csv:cold", "samples of shape (1, 8, 8)"),
        ("sample bundled --label 3 --guidance 2 --classifier classifier", "two kinds of guidance"),
        ("sample bundled --scale 2", "give --classifier RUN"),
        (f"{TRAIN} --data high --condition low", "say how it is resized"),
        (f"{TRAIN} --data high --condition c.csv", "60 conditions for the 40 samples"),
        (f"{TRAIN} --data x.npy --classifier", "has no labels"),
        (f"{TRAIN} --classifier --drop-label 0.1", "not of a classifier's training"),
        (f"{TRAIN} --drop-condition 0.1", "no effect without --condition"),
        (f"{TRAIN} --condition-noise 0.1", "the data have none"),
    ],
)
def test_what_does_not_fit_is_refused(command: str, message: str) -> None:
    assert message in refused(command)


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:mmd", "ignore:neighbours")
def test_a_classifier_guides_the_bundled_network_and_the_record_names_it() -> None:
    accuracy = json.loads(Path("classifier/accuracy.json").read_text())
    assert accuracy["split"] == "held-out" and len(accuracy["times"]) == 9
    run("sample bundled --classifier classifier --label 3,5 --scale 2 --n 4 --nfe 3 --out one")
    made = record("one")
    assert made["labels"] == [3, 5] and made["guidance_rule"]["classifier_scale"] == 2 and made["nfe"]["most"] == 3
    assert "name it: --classifier RUN" in refused("sample --record one/samples.json --out two")
    assert "bit-equal" in run("sample --record one/samples.json --classifier classifier --out two")
    run(f"evaluate bundled --classifier classifier --label all --features pixels {FEW} --out quality")


def test_the_latest_run_is_no_classifier_and_labels_take_the_labelled_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "runs").mkdir()
    shutil.copytree("classifier", "runs/classifier")
    said = invoke("sample --label 3 --guidance 2 --n 2 --nfe 4 --out one").stderr
    assert "the bundled network of digits with labels, bundled-labelled" in said
    assert record("one")["checkpoint"]["path"] == "bundled-labelled"
    assert "bit-equal" in run("sample --record one/samples.json --out two")
    run("sample --classifier runs/classifier --label 3 --n 2 --nfe 2 --out three")
    assert record("three")["checkpoint"]["path"] == "bundled"
    shutil.copytree("pets-run", "runs/pets")
    run("sample --label cat --n 2 --nfe 2 --out four")
    assert record("four")["checkpoint"]["path"].startswith("runs/pets")
