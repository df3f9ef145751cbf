"""`sdediff restore` as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.data import load_data

runner = CliRunner()


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digit = ((load_data("digits").batch(torch.tensor([3]))[0, 0] + 1) * 127.5).round().numpy().astype(np.uint8)
    Image.fromarray(digit).save("digit.png")
    Image.fromarray(digit[:2, :2]).save("small.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[4:] = 0
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("nothing.png")


def restored(*arguments: str) -> str:
    result = runner.invoke(app, ["restore", *arguments, "--run", "bundled", "--n", "2", "--nfe", "6"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("task", [["inpaint", "--mask", "mask.png"], ["superres"], ["deblur", "--blur", "0.8"]])
def test_a_degraded_image_is_restored_measured_and_drawn(task: list[str]) -> None:
    text = restored(task[0], "digit.png", *task[1:], "--simulate", "--out", "done")
    assert "residual" in text and "of the baseline" in text and "24 backward passes" in text
    with Image.open("done/01-digit.png") as picture:
        assert picture.width > 4 * picture.height > 300
    with np.load("done/01-digit.npz") as arrays:
        assert arrays["x"].shape == (2, 1, 8, 8) and arrays["std"].shape == (1, 8, 8)


def test_an_observed_image_is_restored_without_the_truth() -> None:
    assert "PSNR" not in restored("superres", "small.png")
    assert Path("restored/01-small.png").is_file()
    restored("superres", "small.png")
    assert Path("restored-2/01-small.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint", "digit.png"], "--mask FILE, black where hidden"),
        (["superres", "digit.png"], "takes 2 x 2, or a clean image with --simulate"),
        (["superres", "small.png", "--mask", "mask.png"], "takes no --mask"),
        (["inpaint", "digit.png", "--mask", "small.png"], "the mask has the size of the model's images, 8 x 8"),
        (["inpaint", "digit.png", "--mask", "nothing.png"], "hides everything"),
        (["colorize", "digit.png"], "needs a model of RGB images"),
        (["deblur", "digit.png", "--blur", "0"], "pixels and positive"),
        (["deblur", "digit.png", "--blur", "inf"], "positive, at most 1000; got inf"),
        (["deblur", "digit.png", "--blur", "1e9"], "at most 1000; got 1e+09"),
        (["deblur", "digit.png"], "use a smaller standard deviation (--blur)"),
        (["superres", "small.png", "--factor", "3"], "choose a common factor of both sides (--factor)"),
        (["superres", "small.png", "--noise", "-1"], "standard deviation, >= 0"),
        (["superres", "small.png", "--method", "magic"], "magic"),
        (["superres", "gone.png"], "gone.png"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["restore", *arguments, "--run", "bundled", "--out", "done"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not Path("done").exists()
