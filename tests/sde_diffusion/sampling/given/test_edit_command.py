"""`sdediff sample --from` and `sdediff edit` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion import VPSDE, ScoreModel, load, sample
from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.networks import build
from sde_diffusion.sampling import edit
from sde_diffusion.sampling.given.edits import transports
from sde_diffusion.sampling.inversion import round_trip
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.locate import find_model

runner = CliRunner()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "run"
    train = f"train --data digits --labels --batch-size 16 --channels 8 --steps 2 --device cpu --out {folder}"
    assert runner.invoke(app, train.split()).exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in ((3, "five"), (8, "zero")):
        digit = ((load_data("digits").batch(torch.tensor([k]))[0, 0] + 1) * 127.5).round().numpy().astype(np.uint8)
        Image.fromarray(digit).save(f"{name}.png")
    Image.fromarray(np.zeros((4, 8), np.uint8)).save("small.png")
    np.save("both.npy", load_data("digits").batch(torch.tensor([3, 8])).numpy())
    np.save("points.npy", np.zeros((2, 2), np.float32))


def done(command: str) -> str:
    result = runner.invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return result.output


def bundled() -> StoredModel:
    return find_model("bundled")


def test_samples_start_from_the_images_and_the_record_makes_them_again() -> None:
    text = done("sample bundled --from five.png --from zero.png --n 6 --nfe 5 --strength 0.3 --seed 2 --out made")
    assert "6 samples by pf-ode, 5 evaluations each" in text
    with np.load("made/samples.npz") as arrays:
        x, source = torch.tensor(arrays["x"]), torch.tensor(arrays["source"])
    model = load(bundled())
    assert torch.equal(edit(model, source.repeat(3, 1, 1, 1), 0.3, nfe=5, seed=2), x)
    assert not torch.allclose(sample(model, 6, nfe=5, seed=2), x, atol=0.3)
    record = json.loads(Path("made/samples.json").read_text())
    assert record["start"]["strength"] == 0.3 and record["grid"]["times"][0] == 0.3
    with Image.open("made/samples.png") as picture:  # two rows of one image and three samples
        assert picture.width > 1.5 * picture.height
    again = "sample bundled --record made/samples.json"
    assert "bit-equal" in done(f"{again} --from five.png --from zero.png --out again")
    assert "name them: --from FILE" in runner.invoke(app, again.split()).output
    assert "start from other data" in runner.invoke(app, [*again.split(), "--from", "zero.png"]).output


def test_variations_have_a_row_for_each_image_and_strength() -> None:
    text = done("edit variations five.png zero.png --run bundled --strength 0.2,0.8 --n 3 --nfe 4 --out made")
    assert "12 results, 4 evaluations each" in text
    with np.load("made/edit.npz") as arrays:
        x, given = torch.tensor(arrays["x"]), torch.tensor(arrays["given"])
    assert x.shape == (4, 3, 1, 8, 8)
    far = (x - given[:, None]).square().flatten(2).mean(2).mean(1)
    assert bool((far[[0, 2]] < far[[1, 3]]).all())
    record = json.loads(Path("made/edit.json").read_text())
    assert record["settings"]["strength"] == [0.2, 0.8] and record["checkpoint"]["sha256"] == bundled().sha256


def test_an_interpolation_goes_from_one_image_to_the_other() -> None:
    text = done("edit interpolate both.npy --run bundled --n 3 --tolerance 1e-3")
    assert "3 results" in text and "round trip" in text
    with np.load("interpolate/edit.npz") as arrays:
        x, ends = arrays["x"][0], (arrays["given"][0], arrays["other"][0])
    assert np.abs(x[0] - ends[0]).max() < 0.1 and np.abs(x[2] - ends[1]).max() < 0.1
    assert np.abs(x[1] - ends[0]).max() > 0.5 and np.abs(x[1] - ends[1]).max() > 0.5
    assert Path("interpolate/edit.png").is_file()


def test_transport_has_a_column_for_each_class_and_one_for_the_round_trip(labelled: Path) -> None:
    done(f"edit transport five.png --run {labelled} --label 5 --to 0,8 --tolerance 1e-3 --out made")
    with np.load("made/edit.npz") as arrays:
        x, given = arrays["x"], arrays["given"]
    assert x.shape == (1, 3, 1, 8, 8)
    assert np.abs(x[0, 0] - given[0]).max() < 0.1  # encoded and decoded with the same label


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample bundled --from small.png", "small.png is 4 x 8 pixels; this model takes 8 x 8"),
        ("sample bundled --from points.npy", "samples of 2 values; this model takes 1 x 8 x 8"),
        ("sample bundled --from five.png --strength 0", "in (0, 1]; got 0.0"),
        ("sample bundled --from five.png --strength 1.2", "in (0, 1]; got 1.2"),
        ("sample bundled --from gone.png", "no file at gone.png"),
        ("sample bundled --strength 0.3", "--strength has no effect without --from"),
        ("sample bundled --from five.png --tolerance 0.1", "leave out --tolerance or --from"),
        ("sample bundled --from five.png --grid 1,0.5,0", "not at the strength"),
        ("edit variations small.png --run bundled", "this model takes 8 x 8"),
        ("edit variations five.png --run bundled --strength 0.2,often", "numbers separated by commas"),
        ("edit variations five.png --run bundled --strength 0.2,7", "in (0, 1]; got 7.0"),
        ("edit variations five.png --run bundled --to 3", "it applies to transport"),
        ("edit interpolate five.png --run bundled", "two or more samples"),
        ("edit interpolate five.png zero.png --run bundled --tolerance 0", "positive and finite; got 0.0"),
        ("edit interpolate five.png zero.png --run bundled --nfe 9", "it applies to variations"),
        ("edit transport five.png --run bundled --label 3", "--label 3 --to 5,8"),
        ("edit transport five.png --run bundled --to 3", "--label 3 --to 5,8"),
        ("edit transport five.png --run bundled --label 3 --to 12", "the class '12'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(command: str, message: str) -> None:
    result = runner.invoke(app, [*command.split(), "--out", "made"])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not Path("made").exists()


def test_labels_that_the_model_does_not_have_are_refused(labelled: Path) -> None:
    result = runner.invoke(app, f"edit transport five.png --run {labelled} --label 3 --to 11 --out made".split())
    assert result.exit_code == 2 and "11" in result.output


def test_a_model_that_needs_a_condition_is_sent_to_sample() -> None:
    np.save("angle.npy", np.linspace(0, 1, len(load_data("digits")), dtype=np.float32)[:, None])
    train = (
        "train --data digits --condition angle.npy --drop-condition 0 --batch-size 4 --channels 8 --steps 1 --out run"
    )
    done(train + " --device cpu")
    edited = runner.invoke(app, ["edit", "variations", "five.png", "--run", "run"])
    assert edited.exit_code == 2
    assert "edit variations takes none; sdediff sample --from IMAGE" in " ".join(edited.output.split())
    restored = runner.invoke(app, ["restore", "superres", "small.png", "--run", "run"])
    assert restored.exit_code == 2
    assert "restore takes none; use a model trained without conditions" in " ".join(restored.output.split())
    done("sample run --from five.png --strength 0.4 --condition angle.npy --n 2 --nfe 2 --out made")


def test_the_evaluations_of_a_transport_are_those_of_both_ways() -> None:
    torch.manual_seed(0)
    model = ScoreModel(build("mlp", shape=(2,), width=8, classes=3), VPSDE(), "data", shape=(2,)).eval()
    x, label = torch.randn(2, 2), torch.tensor([1, 1])
    there = round_trip(model, x, tolerance=1e-3, label=label)
    edits = transports(model, x, [1], [], tolerance=1e-3)
    assert edits.nfe == (int(there.nfe.min()), int(there.nfe.max()))
    assert edits.error == pytest.approx(float(there.error.max()), rel=1e-4)
