"""A run keeps the layout of its array and the levels of its U-Net, from whichever place they were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import invoke

SMALL = ["--steps", "2", "--batch-size", "4", "--channels", "8"]


def model_of(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "config.json").read_text())["model"]


@pytest.fixture
def maps() -> str:
    """Arrays of 4 x 8 maps with 8 channels last, which by their shape alone are 8 x 8 images of 4 channels."""
    np.save("maps.npy", np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype("f4"))
    return "maps.npy"


def test_a_run_keeps_the_layout_of_its_array(maps: str) -> None:
    assert invoke("train", "--data", maps, *SMALL, "--out", "shape").exit_code == 0
    assert model_of("shape")["shape"] == [4, 8, 8]
    trained = invoke("train", "--data", maps, "--layout", "channels-last", *SMALL, "--out", "run")
    assert trained.exit_code == 0, trained.output
    assert model_of("run")["shape"] == [8, 4, 8]
    resumed = invoke("train", "--resume", "--out", "run", "--steps", 4)
    assert resumed.exit_code == 0, resumed.output
    other = invoke("train", "--resume", "--out", "run", "--steps", 6, "--layout", "channels-first")
    assert other.exit_code == 2 and "shape" in other.stderr
    again = invoke("train", "--config", "run/config.toml", "--steps", 1, "--out", "again")
    assert again.exit_code == 0 and model_of("again")["shape"] == [8, 4, 8], again.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of few samples
def test_commands_on_the_run_read_its_data_in_that_layout(maps: str) -> None:
    assert invoke("train", "--data", maps, "--layout", "channels-last", *SMALL, "--out", "run").exit_code == 0
    scores = ["--metrics", "sliced-wasserstein", "--features", "pixels", "--draws", 2, "--processes", 1]
    for command in (
        ["evaluate", "run", "--n", 8, "--nfe", 2, *scores],
        ["evaluate", "run", "--n", 8, "--nfe", 2, *scores, "--reference", "./maps.npy"],
        ["likelihood", "run", "--n", 2, "--solver", "heun", "--steps", 1],
        ["compare", "run", "--solvers", "ddim", "--nfe", 2, "--n", 4, "--paired", 2, "--reference-steps", 4],
        ["doctor", "run", "--n", 8],
    ):
        done = invoke(*command)
        assert done.exit_code in (0, 1 if "doctor" in command else 0), done.output
        assert "no distances" not in done.output and "shape" not in done.stderr


@pytest.mark.parametrize("place", ["options", "file"])
def test_levels_of_a_u_net_are_those_given(place: str) -> None:
    np.save("vol.npy", np.random.default_rng(0).standard_normal((16, 1, 8, 8, 6)).astype("f4"))
    levels: list[object] = ["--multipliers", "1,2", "--attention", "4"]
    if place == "file":
        Path("v.toml").write_text("[network]\nmultipliers = [1, 2]\nattention = [4]\n")
        levels = ["--config", "v.toml"]
    trained = invoke("train", "--data", "vol.npy", *SMALL, *levels, "--out", "v")
    assert trained.exit_code == 0, trained.output
    settings = model_of("v")["network"]["settings"]
    assert (settings["multipliers"], settings["attention"], settings["channels"]) == ([1, 2], [4], 8)


def test_attention_stays_at_its_heights_where_only_the_levels_are_given() -> None:
    for levels, heights in (("1", [8]), ("1,1,2", [4, 2])):
        out = f"d{len(levels)}"
        assert invoke("train", *SMALL[:4], "--channels", 4, "--multipliers", levels, "--out", out).exit_code == 0
        settings = model_of(out)["network"]["settings"]
        assert settings["multipliers"] == [int(k) for k in levels.split(",")]
        assert settings["attention"] == [h for h in heights if h <= 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--multipliers", "1,x"], "--multipliers takes whole numbers separated by commas"),
        (["--multipliers", ""], "--multipliers takes whole numbers"),
        (["--multipliers", "0,1"], "multipliers"),
        (["--multipliers", "-1"], "multipliers"),
        (["--multipliers", "1,99999999999999999999"], "multipliers"),
        (["--multipliers", ",".join(["1"] * 40)], "multipliers"),
        (["--attention", "3"], "attention"),
        (["--multipliers", "1,2", "--data", "moons"], "the network mlp has no setting 'multipliers'"),
    ],
)
def test_other_levels_are_refused_before_the_training(options: list[str], said: str) -> None:
    refused = invoke("train", *SMALL[:4], *options, "--out", "r")
    assert refused.exit_code == 2 and said in refused.stderr, (refused.output, refused.exception)
    assert not Path("r").exists()
