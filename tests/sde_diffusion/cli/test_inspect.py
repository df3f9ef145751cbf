from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load


def test_a_run_and_what_was_exported_from_it_describe_themselves() -> None:
    runner = CliRunner()
    args = "train --data moons --sde ve --steps 2 --batch-size 4 --width 8 --depth 1 --out run"
    assert runner.invoke(app, args.split()).exit_code == 0
    facts = json.loads(runner.invoke(app, ["inspect", "--json", "run"]).stdout)
    assert facts["sde"] == {"name": "ve", "settings": {"sigma_min": 0.01, "sigma_max": 50.0}}
    assert facts["parameters"] == sum(p.numel() for p in load("run").parameters())
    assert (facts["steps"], facts["shape"], facts["data"]["name"]) == (2, [2], "moons")
    assert facts["sha256"] == checkpoint_at("run").sha256
    text = runner.invoke(app, ["inspect", "run"]).stdout
    assert "ve (sigma_min 0.01, sigma_max 50.0)" in text and f"{facts['parameters']:,}" in text

    export(load("run"), "alone.safetensors")
    lines = runner.invoke(app, ["inspect", "alone.safetensors"]).stdout.splitlines()
    assert "steps       unknown" in lines and "data        unknown" in lines

    Path("run/checkpoints/step-000002/ema.safetensors").unlink()
    result = runner.invoke(app, ["inspect", "run/checkpoints/step-000002"])
    assert result.exit_code == 2 and "ema.safetensors is missing" in result.stderr


def test_a_data_set_is_counted_measured_and_drawn() -> None:
    Path("cats").mkdir()
    grey = np.zeros((4, 6), np.uint8)
    for name, value in {"a": 0, "b": 255, "c": 0, "d": 255, "e": 0}.items():
        Image.fromarray(grey + np.uint8(value)).save(f"cats/{name}.png")
    result = CliRunner().invoke(app, ["inspect", "cats", "--json", "--picture", "cats.png"])
    facts = json.loads(result.stdout)
    assert (facts["samples"], facts["shape"], facts["duplicates"], facts["labels"]) == (5, [1, 4, 6], 3, None)
    assert (facts["smallest"], facts["largest"], facts["mean"]) == (-1, 1, pytest.approx(-0.2))
    # two values, -1 and 1, with shares 3/5 and 2/5; black and white images are 2 sqrt(24) apart
    assert facts["std"] == pytest.approx(0.96**0.5)
    assert facts["proposed"] == {"sigma_data": 1.0, "sigma_max": 9.8}
    with Image.open("cats.png") as picture:
        assert {0, 255} <= set(np.asarray(picture).flatten().tolist())
    shown = CliRunner().invoke(app, ["inspect", "digits"]).stdout
    assert "0: 149" in shown and "sigma_data: 0.8466" in shown


def test_what_is_no_data_set_is_looked_for_as_a_model() -> None:
    runner = CliRunner()
    Path("runs/one/samples").mkdir(parents=True)
    Path("runs/one/config.json").touch()
    Image.new("L", (2, 2)).save("runs/one/samples/a.png")
    for path in ("runs", "runs/one"):
        assert "no whole checkpoint" in (error := runner.invoke(app, ["inspect", path]).stderr) or "neither" in error
    assert "no model and no data at gone" in runner.invoke(app, ["inspect", "gone"]).stderr
    assert "apply to data sets" in runner.invoke(app, ["inspect", "bundled", "--picture", "a.png"]).stderr
    np.save("signals.npy", np.zeros((3, 2, 5)))
    assert (
        "--picture cannot draw signals" in runner.invoke(app, ["inspect", "signals.npy", "--picture", "a.png"]).stderr
    )
