"""Reports of users, each with the value that is right.

A letter is that of a report; a test says what was asked for and what must come out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.training.units import KINDS
from sde_diffusion import VPSDE, ScoreModel, evaluate, train
from sde_diffusion.data import as_data, load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.networks import build, default_settings
from sde_diffusion.training.defaults import default_model
from solvers.errors import InputError
from tests.command import invoke

METRICS = ["frechet", "kid", "sliced-wasserstein"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# A. Evaluation of floats beyond [-1, 1].


@pytest.mark.parametrize("features", ["pixels", "pca"])
def test_a_garbage_in_own_units_is_as_far_off_as_it_is(features: str) -> None:
    real, fake = 280 + 15 * noise(600, 1, 4, 4), torch.full((600, 1, 4, 4), 1000.0)
    as_images, as_vectors = as_data(real), as_data(real.flatten(1))
    images = FeatureStatistics.of(as_images, make_extractor(features, fit=lambda: real))
    vectors = FeatureStatistics.of(as_vectors, make_extractor(features, fit=lambda: real.flatten(1)))
    found = evaluate(fake, images, metrics=METRICS, draws=4)
    assert found["frechet"].value == pytest.approx(16 * 720**2 + 16 * 15**2, rel=1e-3)  # 8.30e6
    same = evaluate(fake.flatten(1), vectors, metrics=METRICS, draws=4)
    for name, estimate in same.items():
        assert found[name].value == pytest.approx(estimate.value, rel=1e-4)


def test_a_a_spread_of_3_is_not_one_of_1() -> None:
    reference = FeatureStatistics.of(as_data(noise(3000, 1, 4, 4)), make_extractor("pixels"))
    found = evaluate(3 * noise(3000, 1, 4, 4, seed=1), reference, metrics=["frechet"])["frechet"]
    assert found.value == pytest.approx(16 * (3 - 1) ** 2, abs=2)


def test_a_the_command_line_agrees(tmp_path: Path) -> None:
    np.save(tmp_path / "fields.npy", (280 + 10 * noise(600, 1, 4, 4)).numpy())
    np.save(tmp_path / "fakes.npy", torch.full((300, 1, 4, 4), 1000.0).numpy())
    for features in ("pca", "pixels"):
        given = ["--features", features, "--metrics", "frechet", "--draws", 4, "--out", tmp_path / features]
        result = invoke("evaluate", tmp_path / "fakes.npy", "--reference", tmp_path / "fields.npy", *given)
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / features / "evaluation.json").read_text())["runs"][0]["figures"]["frechet"]
        assert found["value"] == pytest.approx(16 * (1000 - 280) ** 2, rel=0.01)


def test_a_features_of_bytes_ask_for_black_and_white() -> None:
    floats, digits = as_data(280 + 15 * noise(200, 1, 8, 8), name="fields"), make_extractor("digits")
    with pytest.raises(ValueError, match=r"fields holds floats from 2.* not stated: give value_range"):
        FeatureStatistics.of(floats, digits)
    with pytest.raises(ValueError, match="% of the values of fields lie far outside of the stated black and white"):
        FeatureStatistics.of(floats, make_extractor("digits", value_range=(0, 100)))
    stated = FeatureStatistics.of(floats, make_extractor("digits", value_range=(200, 360)))
    assert stated.make_extractor().preprocessing == "black 200, white 360; images rounded to bytes, then x / 127.5 - 1"


# C. Data of another scale.


def trained_on(tmp_path: Path, x: np.ndarray, *options: object, steps: int = 400, n: int = 1000) -> np.ndarray:
    """What the command line makes of an array: the samples of a run with its defaults, but for the steps."""
    np.save(tmp_path / "x.npy", x)
    trained = invoke("train", "--data", tmp_path / "x.npy", "--steps", steps, "--out", tmp_path / "run", *options)
    assert trained.exit_code == 0, trained.output
    drawn = invoke("sample", tmp_path / "run", "--n", n, "--seed", 1, "--out", tmp_path / "out")
    assert drawn.exit_code == 0, drawn.output
    return np.load(tmp_path / "out" / "samples.npz")["x"].astype("f8")


@pytest.mark.parametrize("sde", ["vp", "edm", "flow"])
def test_c_300_plus_minus_10_is_learned_as_it_is(tmp_path: Path, sde: str) -> None:
    x = 300 + 10 * np.random.default_rng(0).standard_normal((2000, 2))
    made = trained_on(tmp_path, x.astype("f4"), "--sde", sde, "--width", 64, "--depth", 2)
    assert made.mean(0) == pytest.approx([300, 300], rel=0.01)
    assert made.std(0) == pytest.approx([10, 10], rel=0.2)


@pytest.mark.parametrize("scale", [1e3, 1e-3, 1e12])
def test_c_other_scales(tmp_path: Path, scale: float) -> None:
    x = scale * np.random.default_rng(0).standard_normal((1000, 2))
    made = trained_on(tmp_path, x, "--width", 64, "--depth", 2, steps=300)
    assert made.std() == pytest.approx(scale, rel=0.25) and abs(made.mean()) < 0.2 * scale


def test_c_inspect_says_what_will_be_done(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", (300 + 10 * np.random.default_rng(0).standard_normal((500, 2))).astype("f4"))
    facts = json.loads(invoke("inspect", tmp_path / "x.npy", "--json").stdout)
    assert facts["normalization"].startswith("standard, per entry: shifts 29")
    assert facts["proposed"]["sigma_data"] == 1.0
    assert "range: bytes / 127.5 - 1" in invoke("inspect", "digits").stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_c_the_default_recipe_in_other_units(tmp_path: Path, kind: str) -> None:
    # benchmarks/training/units.py has the default number of steps. The levels of ct differ from sample to sample, so
    # that the mean of 1,000 has a standard error of 1.3 %.
    x = KINDS[kind](np.random.default_rng(0))
    steps, n = {"vectors": (150, 1000), "ct": (300, 6000), "temperatures": (800, 1000)}[kind]
    made = trained_on(tmp_path, x, steps=steps, n=n)
    assert made.mean() == pytest.approx(x.mean(), rel=0.02)
    assert made.std() == pytest.approx(x.std(), rel=0.1)


# J. Classes with gaps, and classes with names.


def test_j_labels_with_gaps(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    np.savez(tmp_path / "gap.npz", x=r.standard_normal((64, 2)), labels=np.where(np.arange(64) % 2, 5, 900))
    small = ["--steps", 2, "--batch-size", 4, "--width", 8, "--depth", 1]
    trained = invoke("train", "--data", tmp_path / "gap.npz", "--labels", *small, "--out", tmp_path / "gap")
    assert trained.exit_code == 0 and "2 classes" in trained.output
    refused = invoke("sample", tmp_path / "gap", "--label", 7, "--n", 2, "--nfe", 4)
    assert refused.exit_code == 2 and "has the class '7'; its classes: 5, 900" in refused.output
    drawn = invoke("sample", tmp_path / "gap", "--label", "all", "--n", 8, "--nfe", 4, "--out", tmp_path / "all")
    assert drawn.exit_code == 0, drawn.output
    assert np.load(tmp_path / "all" / "samples.npz")["labels"].tolist() == [5, 900] * 4
    one = invoke("sample", tmp_path / "gap", "--label", 900, "--n", 3, "--nfe", 4, "--out", tmp_path / "one")
    assert one.exit_code == 0 and np.load(tmp_path / "one" / "samples.npz")["labels"].tolist() == [900] * 3
    assert json.loads((tmp_path / "one" / "samples.json").read_text())["labels"] == [1]
    assert "5: 32, 900: 32" in invoke("inspect", tmp_path / "gap.npz").output


def test_j_names_of_classes_reach_the_command_line(tmp_path: Path) -> None:
    for k, name in enumerate(("dog", "cat")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for j in range(4):
            Image.fromarray(np.full((8, 8), 40 + 100 * k + j, np.uint8)).save(tmp_path / "pets" / name / f"{j}.png")
    assert invoke("prepare", tmp_path / "pets", "--out", tmp_path / "ready").exit_code == 0
    small = ["--steps", 1, "--batch-size", 4, "--channels", 8, "--labels", "--out", tmp_path / "run"]
    assert invoke("train", "--data", tmp_path / "ready", *small).exit_code == 0
    drawn = invoke("sample", tmp_path / "run", "--label", "dog,cat", "--n", 4, "--nfe", 3, "--out", tmp_path / "out")
    assert drawn.exit_code == 0, drawn.output
    assert np.load(tmp_path / "out" / "samples.npz")["labels"].tolist() == [1, 0, 1, 0]
    refused = invoke("sample", tmp_path / "run", "--label", "bird", "--n", 2, "--nfe", 3)
    assert refused.exit_code == 2 and "has the class 'bird'; its classes: cat, dog" in refused.output
    assert "cat: 4, dog: 4" in invoke("inspect", tmp_path / "ready").output
    assert "cat, dog" in invoke("inspect", tmp_path / "run").output


# E. Floats with their channels last.


def test_e_channels_last_floats_are_images_of_three_channels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 16, 16, 3))
    np.save(tmp_path / "x.npy", x)
    assert json.loads(invoke("inspect", tmp_path / "x.npy", "--json").stdout)["shape"] == [3, 16, 16]


# F, G, H and K. Networks that fit, contexts that nothing feeds, and the learning rate of a resumed run.


def test_f_multipliers_reach_the_network_of_a_volume(tmp_path: Path) -> None:
    np.save(tmp_path / "vol.npy", np.random.default_rng(0).standard_normal((16, 1, 8, 8, 6)).astype("f4"))
    text = f"""data = "{tmp_path / "vol.npy"}"
steps = 2
batch_size = 4
[network]
name = "unet"
channels = 8
multipliers = [1, 2]
"""
    (tmp_path / "v.toml").write_text(text)
    trained = invoke("train", "--config", tmp_path / "v.toml", "--out", tmp_path / "v")
    assert trained.exit_code == 0, trained.output
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert config["model"]["network"]["settings"]["multipliers"] == [1, 2]
    model = default_model(load_data(tmp_path / "vol.npy"))  # and without a word it is a U-Net too, not an MLP
    assert model.network.name == "unet" and sum(p.numel() for p in model.parameters()) < 3_000_000


def test_g_an_odd_side_keeps_the_levels_of_the_network() -> None:
    odd, even = (default_settings((3, 36, width))[1] for width in (31, 32))
    assert odd["multipliers"] == even["multipliers"] and len(odd["multipliers"]) == 4


def test_h_a_context_that_nothing_feeds_is_refused() -> None:
    model = ScoreModel(build("mlp", shape=(2,), width=32, context=1), VPSDE(), "velocity")
    with pytest.raises(InputError, match="takes a context of 1 values, and training does not supply one"):
        train(model, noise(64, 2), steps=2, batch_size=8, progress=False)


def test_k_a_finished_schedule_says_what_comes_next(tmp_path: Path) -> None:
    small = ["--batch-size", 8, "--width", 8, "--depth", 1, "--warmup", 0, "--out", tmp_path / "r"]
    assert invoke("train", "--data", "moons", "--steps", 4, *small).exit_code == 0
    resumed = invoke("train", "--resume", "--steps", 8, "--out", tmp_path / "r")
    assert resumed.exit_code == 0, resumed.output
    rate = 2e-3 * (1 + math.cos(math.pi * 5 / 8)) / 2
    assert f"learning rate {rate:.3g} at step 5: the cosine schedule now ends at 8 steps" in resumed.output
    assert "at step 4 of 4 the learning rate was 0" in resumed.output
