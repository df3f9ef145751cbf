"""Cascades: two exact stages give the full law, data of the stages, how evaluations are split, what does not fit."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from sde_diffusion.cascade.drawing import StageModel, check_chain, sample_cascade
from sde_diffusion.cascade.run import train_cascade
from sde_diffusion.cascade.stages import check_sizes, read_cascade, split_nfe, stage_data
from sde_diffusion.cli import app
from sde_diffusion.data import as_data, load_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.networks.given import GivenConditions
from sde_diffusion.sde import SDE, VPSDE
from solvers.errors import InputError, InputTypeError, NotFoundError


def image_covariance(size: int = 4) -> Tensor:
    """The covariance of images whose neighbours are alike, (size^2, size^2), with unequal variances."""
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size)).double()
    apart = (places[:, None] - places[None]).square().sum(-1)
    spread = 0.5 + 0.1 * torch.arange(size * size, dtype=torch.float64)
    return spread[:, None] * spread * torch.exp(-apart / 4) + 0.01 * torch.eye(size * size, dtype=torch.float64)


def pooling(size: int, factor: int) -> Tensor:
    """The matrix of means over squares of pixels."""
    eye = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    return F.avg_pool2d(eye, factor).flatten(1).T


class ExactStage(nn.Module):
    """E[x_0 | x_t, y_s] of images N(0, C), where y_s is the image before, A x_0, noised to the level s."""

    def __init__(self, covariance: Tensor, observe: Tensor | None, sde: SDE) -> None:
        super().__init__()
        self.covariance, self.observe, self.sde = covariance, observe, sde
        size = round(len(covariance) ** 0.5)
        self.sample = (1, size, size)
        self.settings: dict[str, Any] = {"shape": list(self.sample)}
        if observe is not None:
            small = round(len(observe) ** 0.5)
            self.settings["image"] = [1, small, small]
            self.given = GivenConditions(self.sample, 8, image=(1, small, small), resize="nearest")

    def forward(self, x: Tensor, t: Tensor, image: Tensor | None = None, image_noise: Tensor | None = None) -> Tensor:
        alpha, sigma = (float(value) for value in self.sde.marginal(float(t[0])))
        eye = torch.eye(len(self.covariance), dtype=torch.float64)
        rows, noise, seen = [alpha * eye], [sigma**2 * eye], [x.flatten(1).double()]
        if self.observe is not None:
            assert image is not None
            s = 0.0 if image_noise is None else float(image_noise[0])
            rows.append((1 - s * s) ** 0.5 * self.observe)
            noise.append(s * s * torch.eye(len(self.observe), dtype=torch.float64))
            seen.append(image.flatten(1).double())
        h = torch.cat(rows)
        inner = h @ self.covariance @ h.T + torch.block_diag(*noise)
        inner = inner + 1e-12 * torch.eye(len(inner), dtype=torch.float64)
        gain = torch.linalg.solve(inner, h @ self.covariance).T
        return (torch.cat(seen, 1) @ gain.T).reshape(x.shape).to(x)


def exact_cascade(noise: float) -> tuple[list[StageModel], Tensor]:
    sde, covariance, observe = VPSDE(), image_covariance(), pooling(4, 2)
    first = ScoreModel(ExactStage(observe @ covariance @ observe.T, None, sde), sde, "data", (1, 2, 2))
    second = ScoreModel(ExactStage(covariance, observe, sde), sde, "data", (1, 4, 4))
    return [StageModel(first, 16), StageModel(second, 24, noise)], covariance


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_two_exact_stages_give_the_full_law(noise: float) -> None:
    stages, covariance = exact_cascade(noise)
    n = 12_000
    low, x = sample_cascade(stages, n, seed=3, batch_size=4000)
    found, scale = torch.cov(x.flatten(1).double().T), covariance.diagonal().sqrt()
    error = (found - covariance) / scale[:, None] / scale
    assert float(error.abs().max()) < 6 * (2 / n) ** 0.5  # six standard errors
    assert float((x.flatten(1).double().mean(0) / scale).abs().max()) < 6 / n**0.5
    joint = F.avg_pool2d(x, 2) - low
    if noise == 0:
        assert float(joint.abs().max()) < 2e-2  # the large image has the means that it was given
    else:
        assert float(joint.std()) > 0.05  # and draws them anew where they were noised


def test_a_sample_depends_on_its_seed_alone() -> None:
    stages, _ = exact_cascade(0.3)
    whole = sample_cascade(stages, 6, seed=1, batch_size=6)
    parts = sample_cascade(stages, 4, seed=1, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a[:4], b, atol=1e-5)
    assert not torch.allclose(whole[1], sample_cascade(stages, 6, seed=2)[1], atol=1e-2)


def test_stages_that_do_not_fit_are_refused() -> None:
    small = build("unet", shape=(1, 4, 4), channels=8, multipliers=(1,))
    large = build("unet", shape=(1, 8, 8), channels=8, multipliers=(1,), image=(1, 2, 2), resize="nearest")
    models = [ScoreModel(net, VPSDE(), "velocity", net.shape) for net in (small, large)]
    with pytest.raises(InputError, match=r"stage 2 of the cascade is conditioned on \(1, 2, 2\), and .* \(1, 4, 4\)"):
        check_chain(models)
    with pytest.raises(InputError, match=r"stage 1 .* conditioned on \(1, 2, 2\), and the stage before gives no image"):
        check_chain(models[1:])
    with pytest.raises(InputError, match="one stage at least"):
        sample_cascade([], 1)


def test_the_data_of_a_stage_are_means_and_its_condition_those_before() -> None:
    digits = load_data("digits")
    stages = stage_data(digits, [2, 4, 8])
    assert [stage.shape for stage in stages] == [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    assert stages[0].condition is None and stages[2].x is digits.x
    for small, large in pairwise(stages):
        assert large.condition is not None
        pooled = F.avg_pool2d(large.batch(slice(0, 20)), 2)
        assert torch.allclose(large.condition.batch(slice(0, 20)), pooled, atol=1e-5)
        assert torch.allclose(small.batch(slice(0, 20)), pooled, atol=1e-5)
    with pytest.raises(InputError, match=r"last stage has size 16; digits has samples of shape \(1, 8, 8\)"):
        stage_data(digits, [8, 16])
    with pytest.raises(InputError, match="needs images of"):
        stage_data(load_data("moons"), [1, 2])
    with pytest.raises(InputError, match="the width 6 of wide is not divided by 4"):
        stage_data(as_data(torch.zeros(3, 1, 8, 6), name="wide"), [2, 8])


@pytest.mark.parametrize(("total", "shares"), [(3, [1, 1, 1]), (50, [10, 30, 2]), (5, [100, 1, 1]), (17, [3, 3, 3])])
def test_evaluations_are_split_in_full(total: int, shares: list[int]) -> None:
    found = split_nfe(total, shares)
    assert sum(found) == total and min(found) >= 1
    with pytest.raises(InputError, match="as many evaluations at least"):
        split_nfe(len(shares) - 1, shares)


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_a_cascade(tmp_path: Path) -> None:
    file = toml(
        tmp_path / "c.toml", 'data = "digits"\n[[stage]]\nsize = 4\nsteps = 5\n[[stage]]\nsize = 8\nnoise = 0.1\n'
    )
    common, stages = read_cascade(file)
    assert common == {"data": "digits"} and [stage.size for stage in stages] == [4, 8]
    assert stages[0].options == {"steps": 5} and stages[1].noise == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[stage]]\nsize = 8\n", "2 or more tables"),
        ("[[stage]]\nsize = 4\n[[stage]]\nsize = 6\n", "stages of 4 and 6 do not fit"),
        ("[[stage]]\nsize = 8\n[[stage]]\nsize = 4\n", "stages of 8 and 4 do not fit"),
        ("[[stage]]\nsize = 4\nnoise = 0.2\n[[stage]]\nsize = 8\n", "stage 1: noise is the level"),
        ("[[stage]]\nsize = 4\n[[stage]]\nsize = 8\nnoise = 2\n", "stage 2: noise is the level"),
        ('condition = "low"\n[[stage]]\nsize = 4\n[[stage]]\nsize = 8\n', "leave out condition"),
    ],
)
def test_other_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_cascade(toml(tmp_path / "c.toml", text))


def test_sizes_are_whole_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputTypeError, match=r"whole numbers from 1 up; got 4\.5 and 10"):
        read_cascade(toml(tmp_path / "c.toml", "[[stage]]\nsize = 4.5\n[[stage]]\nsize = 9\n"))
    check_sizes([7, 14, 28], "mnist")


def test_a_cascade_that_is_not_there_is_not_resumed(tmp_path: Path) -> None:
    file = toml(tmp_path / "c.toml", "steps = 1\n[[stage]]\nsize = 4\n[[stage]]\nsize = 8\n")
    with pytest.raises(NotFoundError, match=r"nothing to resume at .*: there is no cascade\.json"):
        train_cascade(file, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_one_command_trains_and_one_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "batch_size = 16\nsteps = 2\nsample_every = 0\n[[stage]]\nsize = 4\nnfe = 3\n"
    text += "[[stage]]\nsize = 8\nnfe = 2\ncondition_noise = 0.4\nnoise = 0.1\n"
    toml(tmp_path / "c.toml", text)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        return result.output

    run("train", "--cascade", "c.toml", "--out", "runs/c", "--channels", "8")
    drawn = np.load(tmp_path / "runs/c/samples/nfe5/samples.npz")
    assert drawn["x"].shape == (64, 1, 8, 8) and drawn["stage_1"].shape == (64, 1, 4, 4)
    run("sample", "runs/c", "--n", "3", "--nfe", "10", "--condition-noise", "0.3", "--out", "drawn")
    record = json.loads((tmp_path / "drawn/samples.json").read_text())
    assert [stage["nfe"] for stage in record["stages"]] == [6, 4]
    assert [stage["noise"] for stage in record["stages"]] == [0.0, 0.3]
    assert "leave it out" in run("sample", "runs/c", "--label", "3", code=2)
    assert "as many evaluations at least" in run("sample", "runs/c", "--nfe", "1", code=2)
    assert "exists already" in run("train", "--cascade", "c.toml", "--out", "runs/c", code=2)
    toml(tmp_path / "c.toml", text.replace("steps = 2", "steps = 3"))
    assert "resumed" in run("train", "--cascade", "c.toml", "--out", "runs/c", "--channels", "8", "--resume")
    assert "goes up to condition_noise = 0.4" in run("sample", "runs/c", "--condition-noise", "0.5", code=2)
    for command in ("evaluate", "inspect"):
        assert "is a cascade of several models" in run(command, "runs/c", code=2)
    low = "task:superres:2@digits"
    said = run("sample", "runs/c/stage-2-8", "--condition", low, "--condition-noise", "0.5", code=2)
    assert "with noise up to the level 0.4; got 0.5" in said
    toml(tmp_path / "c.toml", text.replace("size = 4", "size = 2"))
    before = (tmp_path / "runs/c/cascade.json").read_text()
    assert "has stages of [4, 8], the file of [2, 8]" in run(
        "train", "--cascade", "c.toml", "--out", "runs/c", "--resume", code=2
    )
    assert (tmp_path / "runs/c/cascade.json").read_text() == before and not Path("runs/c/stage-1-2").exists()
    toml(tmp_path / "c.toml", text.replace("condition_noise = 0.4", ""))
    assert "goes up to condition_noise = 0;" in run("train", "--cascade", "c.toml", "--out", "runs/d", code=2)
    toml(tmp_path / "c.toml", text + "color = 1\n")
    assert "no option 'color'" in run("train", "--cascade", "c.toml", "--out", "runs/d", code=2)


@pytest.mark.slow
def test_the_file_of_cifar_10_in_the_docs_trains_three_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "latent.md").read_text()
    text = next(block for block in re.findall(r"```toml\n(.*?)```", page, re.S) if 'data = "cifar10"' in block)
    monkeypatch.chdir(tmp_path)
    images = torch.randint(256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.save("images.npy", images.numpy())
    text = text.replace('"cifar10"', '"images.npy"').replace('data_dir = "data"\n', "")
    toml(tmp_path / "c.toml", re.sub(r"steps = \d+", "steps = 1", text))
    result = CliRunner().invoke(app, ["train", "--cascade", "c.toml", "--out", "c", "--batch-size", "8"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in sorted(Path("c").glob("stage-*"))] == ["stage-1-8", "stage-2-16", "stage-3-32"]
    drawn = np.load("c/samples/nfe60/samples.npz")
    assert [drawn[name].shape[1:] for name in ("stage_1", "stage_2", "x")] == [(3, s, s) for s in (8, 16, 32)]
    configs = [json.loads((path / "config.json").read_text()) for path in sorted(Path("c").glob("stage-*"))]
    settings = [config["model"]["network"]["settings"] for config in configs]
    assert [own.get("image") for own in settings] == [None, [3, 8, 8], [3, 16, 16]]
    assert settings[2]["blocks"] == 1 and configs[2]["train"]["condition_noise"] == 0.4
