"""`sdediff show` as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("figure", "options"),
    [
        ("schedule", ""),
        ("forward", "bundled --n 3"),
        ("reverse", "bundled --nfe 5 --n 3"),
        ("trajectories", "bundled --nfe 5 --n 3"),
    ],
)
def test_each_figure_of_the_bundled_model_is_written(figure: str, options: str) -> None:
    result = runner.invoke(app, ["show", figure, *options.split()])
    assert result.exit_code == 0, result.output
    assert result.output.split() == ["picture", f"{figure}.png"]
    assert Path(f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in Path().iterdir()] == [f"{figure}.png"]


def test_a_film_has_a_frame_for_each_step_and_ends_with_the_samples() -> None:
    result = runner.invoke(app, ["show", "film", "bundled", "--nfe", "6", "--n", "4"])
    assert result.exit_code == 0, result.output
    with Image.open("film.gif") as film:
        assert film.n_frames == 7
        film.seek(6)
        last = np.asarray(film.convert("L"), dtype=int)
        assert film.info["duration"] > 10 * 500
        film.seek(0)
        first = np.asarray(film.convert("L"), dtype=int)
    half = last.shape[1] // 2
    assert abs(last[20:, : half - 5] - last[20:, half + 5 :]).max() == 0  # x_0 is its own denoised sample
    assert abs(first[20:, : half - 5] - first[20:, half + 5 :]).mean() > 20
    assert runner.invoke(app, ["show", "film", "bundled", "--nfe", "2", "--out", "a.webp"]).exit_code == 0
    result = runner.invoke(app, ["show", "film", "bundled", "--out", "a.png"])
    assert result.exit_code == 2 and ".gif, .webp, .mp4, by" in result.output


def test_files_are_not_overwritten_and_formats_follow_the_name() -> None:
    for _ in range(2):
        assert runner.invoke(app, ["show", "schedule"]).exit_code == 0
    assert Path("schedule-2.png").is_file()
    assert runner.invoke(app, ["show", "schedule", "--sde", "vp,ddpm", "--out", "a.svg"]).exit_code == 0
    result = runner.invoke(app, ["show", "schedule", "--out", "a.svg"])
    assert result.exit_code == 2 and "exists already" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "bundled"], "data in 2-D"),
        (["schedule", "--sde", "vpp"], "did you mean"),
        (["schedule", "--out", "a.gif"], "written as .png, .svg, .pdf"),
        (["trajectories", "bundled", "--solver", "rk45"], "chooses its own steps"),
        (["reverse", "bundled", "--n", "0"], "at least 1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["show", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert list(Path().iterdir()) == []
