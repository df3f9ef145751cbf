"""The app draws what ``sample`` draws, and talks to nobody. Its widgets are tested where gradio is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion import load, sample
from sde_diffusion.app import widgets
from sde_diffusion.app.studio import ALL_LABELS, NO_LABEL, OWN_GRID, OWN_SOLVER, Choice, Studio, choice_of, step_of
from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.storage.checkpoint import checkpoint_at, export
from sde_diffusion.training.defaults import default_model
from solvers import GRIDS
from solvers.diffusion.renoising import Renoising


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    moons = load_data("moons")
    model = default_model(moons, network_settings={"width": 8, "depth": 1})
    path = export(
        model, tmp_path / "model.safetensors", data={"name": "moons", "fingerprint": moons.fingerprint}, step=0
    )
    return Studio(checkpoint_at(path))


def test_samples_are_those_of_sample(studio: Studio) -> None:
    for choice in (Choice("ddim", 5, seed=3, n=4), Choice("sde", 6, "karras", n=2), Choice(n=3)):
        shown, nfe, line = studio.run(choice)
        grid = None if choice.grid == OWN_GRID else choice.grid
        expected = sample(
            load(studio.stored.path), choice.n, solver=choice.solver, nfe=choice.nfe, grid=grid, seed=choice.seed
        )
        assert torch.equal(shown.states[-1], expected) and len(shown.times) == len(studio.frames(shown))
        assert int(nfe.max()) <= choice.nfe and f"{choice.n} samples by {choice.solver}" in line


def test_two_choices_of_one_noise_have_a_distance(studio: Studio) -> None:
    left, right, text = studio.compared(Choice("ddim", 5, n=8), Choice("ddim", 5, n=8))
    assert isinstance(left, Image.Image) and left.tobytes() == right.tobytes()
    assert "RMS 0 on average, 0 at most" in text
    gap = sample(load(studio.stored.path), 8, solver="ddim", nfe=5) - sample(load(studio.stored.path), 8, nfe=9)
    text = studio.compared(Choice("ddim", 5, n=8), Choice("pf-ode", 9, n=8))[2]
    assert f"RMS {float(gap.square().mean(1).sqrt().mean()):.4g} on average" in text
    assert "distance" not in studio.compared(Choice(nfe=2, n=2), Choice(nfe=2, n=2, seed=1))[2]


def test_what_can_be_chosen_is_what_there_is(studio: Studio) -> None:
    assert studio.labels == [NO_LABEL] and studio.grids == [OWN_GRID, *GRIDS]
    assert "pf-ode" in studio.solvers and "rk45" not in studio.solvers
    digits = load_data("digits")
    settings = {"channels": 8, "multipliers": (1,), "blocks": 1, "classes": 10}
    model = default_model(digits, network_settings=settings)
    names = [f"digit {k}" for k in range(10)]
    data = {"name": "digits", "fingerprint": digits.fingerprint, "class_names": names}
    labelled = Studio(checkpoint_at(export(model, "labelled.safetensors", data=data, step=0)))
    assert labelled.labels == [NO_LABEL, ALL_LABELS, *names]
    guided = labelled.run(Choice(nfe=4, label="digit 3", guidance=2.0, n=2))[0].states[-1]
    plain = labelled.run(Choice(nfe=4, label="digit 3", n=2))[0].states[-1]
    assert guided.shape == (2, 1, 8, 8) and plain.shape == guided.shape


def test_bad_values_are_refused(studio: Studio) -> None:
    with pytest.raises(ValueError, match=r"NFE is a whole number; got 2\.5"):
        choice_of("ddim", 2.5, OWN_GRID, NO_LABEL, 1, 0, 4)
    with pytest.raises(ValueError, match="n must be at most 4,096"):
        studio.run(Choice(n=5000))
    shown = studio.run(Choice("ddim", 4, n=2))[0]
    assert [step_of(len(studio.frames(shown)), share) for share in (0.0, 0.5, 1.0)] == [0, 2, 4]


def test_without_gradio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, studio: Studio) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(app, ["app", str(studio.stored.path)])
    assert done.exit_code == 2 and "pip install 'sdediff[app]'" in done.output
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_only_this_machine_reaches_the_page_by_default(monkeypatch: pytest.MonkeyPatch, studio: Studio) -> None:
    found: list[tuple[str, int | None, bool]] = []
    monkeypatch.setattr(widgets, "import_gradio", lambda: None)
    monkeypatch.setattr(widgets, "launch", lambda studio, host, port, browser: found.append((host, port, browser)))
    assert CliRunner().invoke(app, ["app", str(studio.stored.path), "--port", "8000"]).exit_code == 0
    assert found == [("127.0.0.1", 8000, False)]
    assert CliRunner().invoke(app, ["app", "--port", "0"]).exit_code == 2


def test_a_model_of_ones_own_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom sde_diffusion import VPSDE, GaussianMixture\n"
        "def model():\n    return GaussianMixture(torch.zeros(1, 3), std=1.0, sde=VPSDE())\n"
    )
    found: list[Studio] = []
    monkeypatch.setattr(widgets, "import_gradio", lambda: None)
    monkeypatch.setattr(widgets, "launch", lambda studio, *rest: found.append(studio))
    done = CliRunner().invoke(app, ["app", "--model", f"{tmp_path / 'mine.py'}:model"])
    assert done.exit_code == 0, done.output
    assert found[0].model.shape == (3,) and found[0].run(Choice(nfe=4, n=2))[0].states.shape[1:] == (2, 3)


def test_a_distilled_model_is_offered_with_its_own_solver(studio: Studio, tmp_path: Path) -> None:
    assert OWN_SOLVER not in studio.solvers and studio.first == Choice()
    student = studio.model
    student.sampler = Renoising()
    made = Studio(checkpoint_at(export(student, tmp_path / "student.safetensors", data={}, step=0)))
    assert made.first == Choice(OWN_SOLVER, 2) and made.solvers[0] == OWN_SOLVER
    shown, nfe, line = made.run(made.first)
    assert torch.equal(shown.states[-1], sample(load(made.stored.path), 16)) and nfe.tolist() == [2] * 16
    assert "by distilled, 2 evaluations" in line


PAGE = """
import json, sys
from sde_diffusion.app import widgets
from sde_diffusion.app.studio import Studio
from sde_diffusion.storage.checkpoint import checkpoint_at
page = widgets.page_of(Studio(checkpoint_at(sys.argv[1])))
print(json.dumps([b["props"].get("value") for b in page.config["components"] if b["type"] == "button"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_the_page_has_a_button_for_each_action(studio: Studio) -> None:
    # In a process of its own, because gradio's imports warn of much and leave an event loop open.
    env = {**os.environ, "PYTHONPATH": str(Path(widgets.__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", PAGE, str(studio.stored.path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert {"Sample", "Compare"} <= set(json.loads(done.stdout.splitlines()[-1]))
