"""Faults that people meet in their first hour, one by one, and the test that keeps each away.

Plain defects:

1.  Columns of ``sdediff solvers`` vanish at the usual widths: ``test_lazy`` (80, 100, 120, 170 columns).
2.  Formulas of the site are raw TeX: ``tests/test_site``.
3.  A picture of points hides those outside of its axes: ``test_points_outside_of_the_picture_are_counted``, and a
    comparison whose distances a few samples decide: ``test_a_comparison_names_samples_far_from_the_data``.
4.  Warnings are glued to a bar: ``test_terminal`` (a warning stands above the bar).
5.  Lines and commands break inside words: ``test_terminal``; the bar of training:
    ``test_the_bar_of_training_fits``.
6.  Examples of the help wrap: ``test_terminal`` (80, 100, 120 columns).
7.  ``make demo`` ends with a copy of a picture: ``tests/benchmarks/test_demo``.
8.  A mistyped keyword is taken for a condition: ``test_a_mistyped_keyword_is_no_condition``.
9.  torch data sets and loaders are refused: ``test_torch_data_trains``.
10. ``load("bundled")`` finds no model: ``test_bundled_is_a_model_in_python``.
11. ``tune --out`` names a folder where its solvers are already: ``test_tune_says_how_to_use_its_files``.
12. ``sample --tolerance`` counts the pilot as sampling: ``test_the_pilot_is_timed_apart``.
13. Names of classes are lost: ``test_classes_have_names``; grids of classes have no headings:
    ``tests/sde_diffusion/report/test_grid_of_classes``.
14. ``evaluate`` fails after the work for lack of samples: ``test_evaluate`` (metrics are chosen before).

Slow, or silent while slow: the cost of training and its previews (``test_watching``), the time between the end of
training and the picture (``test_watching``), the names of bars (``test_bars_have_the_name_of_their_work``), the start
of the program (``test_lazy``: no numerics are imported).

Missing options: ``--json`` and ``--quiet`` in every command, NO_COLOR, completion of values, ``sdediff config``: below.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner, Result

import sde_diffusion
from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, load, sample, train
from sde_diffusion.cli import SUMMARIES, app
from sde_diffusion.cli.lazy import PRINTING
from sde_diffusion.comparison.comparison import compare
from sde_diffusion.networks import build
from sde_diffusion.report import progress as meters
from sde_diffusion.report import share_of_work as bars
from sde_diffusion.report import terminal
from sde_diffusion.report.pictures import outside, scatter
from sde_diffusion.storage.run_folder import run_config
from sde_diffusion.training.config_file import read_options
from sde_diffusion.training.defaults import set_up
from solvers import SOLVERS

COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3\d")


def run(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "moons"
    run("train", "--data", "moons", "--steps", 3, "--batch-size", 16, "--width", 8, "--out", out, "-q")
    return out


def test_points_outside_of_the_picture_are_counted(tmp_path: Path) -> None:
    square = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    points = torch.cat([torch.zeros(9, 2), torch.tensor([[0.0, 81.0]])])
    assert outside(points, square) == "1 of 10 samples outside of the picture, the farthest at |x| = 81"
    scatter(tmp_path / "with.png", points, square)
    scatter(tmp_path / "without.png", points[:9], square)
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_sample_says_what_its_picture_leaves_out(moons: Path, tmp_path: Path) -> None:
    shown = run("sample", moons, "--n", 50, "--nfe", 5, "--out", tmp_path / "far")  # after three updates: noise
    assert re.search(r"warning: \d+ of 50 samples outside of the picture, the farthest at", shown.stderr)


def test_a_comparison_names_samples_far_from_the_data() -> None:
    model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), std=0.2, sde=VPSDE())
    near = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]]).repeat(20, 1)
    few: Any = {"n": 64, "paired": 8, "reference_steps": 20}
    row = compare(model, {"ddim": SOLVERS["ddim"]}, [5], **few, data=near).rows[0]
    assert re.fullmatch(r"\d+ of 64 samples far from all data decide the distances", row.note)
    fair = torch.cat([near, torch.tensor([[9.0, 9.0], [-9.0, -9.0]])])
    assert (
        compare(model, {"ddim": SOLVERS["ddim"]}, [5], n=64, paired=8, reference_steps=20, data=fair).rows[0].note == ""
    )


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_bar_of_training_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None, _environ={})
    monkeypatch.setattr(terminal, "stderr", lambda: console)
    monkeypatch.setattr(meters, "_BAR_SECONDS", 0.0)
    with meters.Meter(30_000) as meter:
        meter.measured(0.1234, 12_345.0, 0.4)
        meter.update(12_021)
    lines = [line for part in file.getvalue().split("\n") for line in ESCAPES.sub("", part).split("\r") if line.strip()]
    last = lines[-1]
    assert "12021/30000" in last and "loss 0.1234  12,345 images/s  data wait 40 %" in last and "…" not in last
    assert len(last.rstrip()) <= width


def test_a_mistyped_keyword_is_no_condition() -> None:
    model = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    with pytest.raises(TypeError, match=r"no argument 'solvr'.*did you mean 'solver'"):
        sample(model, 4, solvr="ddim")


def test_torch_data_trains() -> None:
    points = TensorDataset(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))
    for data in (points, DataLoader(points, batch_size=8)):
        model = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE())
        assert train(model, data, steps=2, batch_size=8, progress=False).shape == (2,)


def test_bundled_is_a_model_in_python() -> None:
    assert load("bundled").shape == (1, 8, 8)


@pytest.mark.slow
def test_tune_says_how_to_use_its_files(moons: Path, tmp_path: Path) -> None:
    moons = shutil.copytree(moons, tmp_path / "moons")
    few = ("--nfe", 2, "--noise-samples", 16, "--held-out", 2)
    assert re.search(r"sdediff sample \S+ --nfe 2", run("tune", moons, *few, "--out", moons / "tuned").stdout)
    assert "move the files there" in run("tune", moons, *few, "--out", tmp_path / "elsewhere").stdout


@pytest.mark.slow
def test_the_pilot_is_timed_apart(moons: Path, tmp_path: Path) -> None:
    shown = run("sample", moons, "--n", 4, "--tolerance", 9, "--solver", "ddim", "--out", tmp_path / "s").stdout
    assert re.search(r"in \d+\.\d s, after a pilot of \d+\.\d s", shown)


def test_classes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    from PIL import Image

    for name in ("cat", "ship"):
        Path("photos", name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(f"photos/{name}/{k}.png")
    assert "cat: 4, ship: 4" in run("inspect", "photos").stdout
    few = ("--steps", 1, "--batch-size", 4, "--channels", 8, "--blocks", 1, "--labels", "--out", "run", "-q")
    run("train", "--data", "photos", *few)
    made = json.loads(run("sample", "run", "--label", "ship", "--n", 2, "--nfe", 2, "--json").stdout)
    assert np.load(next(p for p in made["written"] if p.endswith(".npz")))["labels"].tolist() == [1, 1]


def test_bars_have_the_name_of_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None, _environ={})
    monkeypatch.setattr(terminal, "stderr", lambda: console)
    monkeypatch.setattr(bars, "_DELAY", 0.0)
    with bars.share_bar(True, "likelihood") as progress:
        assert progress is not None
        progress(0.5)
    assert "likelihood" in file.getvalue() and "sampling" not in file.getvalue()


@pytest.mark.parametrize("command", list(SUMMARIES))
def test_every_command_takes_json_and_quiet(command: str) -> None:
    flags = {flag for parameter in COMMANDS[command].params for flag in parameter.opts}
    assert "--json" in flags
    assert ("--quiet" in flags) == (command not in PRINTING)


def test_json_is_all_that_is_printed_and_quiet_prints_paths(tmp_path: Path, moons: Path) -> None:
    made = json.loads(run("sample", moons, "--n", 3, "--nfe", 2, "--out", tmp_path / "a", "--json").stdout)
    assert made["n"] == 3 and made["solver"] == "pf-ode" and made["nfe"]["most"] == 2
    assert all(Path(path).is_file() for path in made["written"])
    quiet = run("sample", moons, "--n", 3, "--nfe", 2, "--out", tmp_path / "b", "-q").stdout.splitlines()
    assert [Path(path).name for path in quiet] == ["samples.png", "samples.npz", "samples.json"]
    assert all(Path(path).is_file() for path in quiet)
    shown = json.loads(run("show", "schedule", "--out", tmp_path / "s.png", "--json").stdout)
    assert shown == {"written": [str(tmp_path / "s.png")], "figure": "schedule"}
    how = ("--n", 2, "--solver", "heun", "--steps", 3)
    report = json.loads(run("likelihood", moons, *how, "--json").stdout)
    assert report["nats"]["mean"] < 0 and report["data"]["n"] == 2
    assert run("likelihood", moons, "--n", 2, "--solver", "heun", "--steps", 3, "-q").stdout.startswith(
        "log-likelihood"
    )


def test_training_is_silent_if_asked(tmp_path: Path) -> None:
    few = ("--data", "moons", "--steps", 2, "--batch-size", 8, "--width", 8)
    done = run("train", *few, "--out", tmp_path / "q", "-q")
    assert done.stderr == "" or done.stderr.startswith("warning")
    assert Path(done.stdout.splitlines()[0]).suffix == ".png"
    made = json.loads(run("train", *few, "--out", tmp_path / "j", "--json").stdout)
    assert made["run"] == str(tmp_path / "j") and made["steps"] == 2 and made["parameters"] > 0


def test_a_warning_is_printed_in_spite_of_quiet(moons: Path, tmp_path: Path) -> None:
    shown = run("sample", moons, "--n", 50, "--nfe", 5, "--out", tmp_path / "far", "-q")
    assert "warning: " in shown.stderr and "trained" not in shown.stdout


TERMINAL = """
import os, pty, sys
command = [sys.executable, "-m", "sde_diffusion", *sys.argv[1:]]
pid, descriptor = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
while True:
    try:
        part = os.read(descriptor, 65536)
    except OSError:
        break
    if not part:
        break
    sys.stdout.buffer.write(part)
os.waitpid(pid, 0)
"""


def in_a_terminal(*args: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(Path(sde_diffusion.__file__).parent.parent), "TERM": "xterm-256color"}
    env = {**{k: v for k, v in env.items() if k not in ("NO_COLOR", "FORCE_COLOR")}, **environment}
    done = subprocess.run([sys.executable, "-c", TERMINAL, *args], env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_no_color_is_obeyed_in_a_terminal() -> None:
    for args in (("--help",), ("smaple",)):  # neither imports torch
        assert COLOUR.search(in_a_terminal(*args)), args
        assert not COLOUR.search(in_a_terminal(*args, NO_COLOR="1")), args


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sdediff train --predicts v", {"velocity"}),
        ("sdediff train --weight s", {"simple", "sigmoid"}),
        ("sdediff train --time-sampling log-", {"log-normal", "log-normal-wide"}),
        ("sdediff train --network m", {"mlp"}),
        ("sdediff train --data mo", {"moons"}),
        ("sdediff train --precision b", {"bf16"}),
        ("sdediff sample --grid kar", {"karras"}),
        ("sdediff sample --device cu", {"cuda"}),
        ("sdediff evaluate --metrics kid,fre", {"kid,frechet"}),
        ("sdediff evaluate --features pc", {"pca"}),
        ("sdediff show reverse --solver uni", {"unipc"}),
        ("sdediff likelihood --solver rk4", {"rk45"}),
        ("sdediff compare --data rin", {"rings"}),
    ],
)
def test_values_are_completed(words: str, expected: set[str]) -> None:
    environment = {"_SDEDIFF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = CliRunner().invoke(app, [], prog_name="sdediff", env=environment).stdout
    assert set(shown.split()) == expected


def test_the_template_of_options_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all.toml").write_text(run("config").stdout)
    with_it, without = set_up(read_options("all.toml")), set_up({})
    assert with_it.config == without.config and with_it.out == without.out
    assert with_it.model.network.settings == without.model.network.settings  # type: ignore[union-attr]
    few = ("--steps", 1, "--batch-size", 2, "--channels", 8, "--blocks", 1, "-q")
    run("train", "--config", "all.toml", *few)
    assert run_config("runs/digits-vp")["train"]["steps"] == 1


def test_the_template_has_every_option_and_each_line_can_be_set(tmp_path: Path) -> None:
    text = run("config").stdout
    keys = set(re.findall(r"^(?:# )?(\w+) = ", text, re.M))
    listed = {parameter.name for parameter in COMMANDS["train"].params}
    tables = {name.removeprefix("network_").removeprefix("process_") for name in listed}
    assert keys == tables - {"resume", "config_file", "force", "tune", "classifier", "cascade", "as_json", "quiet"}
    (tmp_path / "all.toml").write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M))
    assert read_options(tmp_path / "all.toml")["network"]["width"] == 128
    assert max(map(len, text.splitlines())) < 80
