from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from sde_diffusion.checkpoint import export, find, load
from sde_diffusion.cli import app


def test_a_run_and_what_was_exported_from_it_describe_themselves() -> None:
    runner = CliRunner()
    args = "train --data moons --sde ve --steps 2 --batch-size 4 --width 8 --depth 1 --out run"
    assert runner.invoke(app, args.split()).exit_code == 0
    facts = json.loads(runner.invoke(app, ["inspect", "--json", "run"]).stdout)
    assert facts["sde"] == {"name": "ve", "settings": {"sigma_min": 0.01, "sigma_max": 50.0}}
    assert facts["parameters"] == sum(p.numel() for p in load("run").parameters())
    assert (facts["steps"], facts["shape"], facts["data"]["name"]) == (2, [2], "moons")
    assert facts["sha256"] == find("run").sha256
    text = runner.invoke(app, ["inspect", "run"]).stdout
    assert "ve (sigma_min 0.01, sigma_max 50.0)" in text and f"{facts['parameters']:,}" in text

    export(load("run"), "alone.safetensors")
    lines = runner.invoke(app, ["inspect", "alone.safetensors"]).stdout.splitlines()
    assert "steps       unknown" in lines and "data        unknown" in lines

    Path("run/checkpoints/step-000002/ema.safetensors").unlink()
    result = runner.invoke(app, ["inspect", "run/checkpoints/step-000002"])
    assert result.exit_code == 2 and "ema.safetensors is missing" in result.stderr
