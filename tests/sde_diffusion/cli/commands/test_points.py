"""Clouds of another number of points than in training, from the command line and again from their record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.checkpoint import export
from solvers.errors import InputError


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if code and isinstance(result.exception, InputError):
        return str(result.exception)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build("points", shape=(3, 16), width=8, depth=1, heads=2)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    return export(ScoreModel(network, VPSDE(), "velocity", (3, 16)), tmp_path / "clouds.safetensors")


def test_the_number_of_points_is_an_option_and_is_recorded(clouds: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    run("sample", clouds, "--n", 3, "--nfe", 4, "--points", 24, "--seed", 5, "--out", out)
    x = np.load(out / "samples.npz")["x"]
    assert x.shape == (3, 3, 24) and json.loads((out / "samples.json").read_text())["shape"] == [3, 24]
    again = run("sample", clouds, "--record", out / "samples.json", "--out", tmp_path / "again")
    assert "bit-equal" in again and "not bit-equal" not in again
    usual = tmp_path / "usual"
    run("sample", clouds, "--n", 3, "--nfe", 4, "--seed", 5, "--out", usual)
    assert np.load(usual / "samples.npz")["x"].shape == (3, 3, 16)


def test_the_law_is_that_of_the_shape_argument(clouds: Path, tmp_path: Path) -> None:
    from sde_diffusion.storage.checkpoint import load

    run("sample", clouds, "--n", 2, "--nfe", 4, "--points", 20, "--out", tmp_path / "a")
    expected = sample(load(clouds), 2, nfe=4, shape=(3, 20), progress=False)
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npz")["x"], expected.numpy())


def test_other_networks_and_uses_are_refused(clouds: Path, tmp_path: Path) -> None:
    place = ["--out", tmp_path / "x"]
    assert "networks of point clouds alone" in run("sample", "bundled", "--points", 9, *place, code=2)
    assert "points" in run("sample", clouds, "--points", 0, *place, code=2)
    assert "leave out --profile or --points" in run("sample", clouds, "--points", 9, "--profile", *place, code=2)
    assert not (tmp_path / "x").exists()
