"""Killed with -9 at random moments and resumed, a run ends bit-equal to an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Dropout and batch statistics are the state that is easiest to lose.
CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from sde_diffusion.score import ScoreModel
from sde_diffusion.sde import VPSDE
from sde_diffusion.train import train

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 2)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))

torch.set_num_threads(1)
torch.manual_seed(0 if "first" in sys.argv else 1)
out = Path(sys.argv[1])
x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
train(
    ScoreModel(Net(), VPSDE()), x, out=out, resume=out.exists(), steps=int(sys.argv[2]),
    batch_size=8, log_every=7, checkpoint_every=5, warmup=10, progress=False,
)
"""


def start(out: Path, steps: int, *extra: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(out), str(steps), *extra]
    return subprocess.Popen(command, env=environment)


def newest(out: Path) -> int:
    names = [p.name[5:] for p in (out / "checkpoints").glob("step-*")]
    return max(map(int, names), default=-1)


def kill_at_random(out: Path, steps: int, moment: random.Random) -> bool:
    """Start or resume the run and kill it once it is under way; whether it was killed in time."""
    before = newest(out)
    # The first process alone has the right initial weights: the others must take the saved ones.
    process = start(out, steps, "first" if before < 0 else "later")
    # Not before new work was saved, or 15 kills would never come to an end.
    while process.poll() is None and newest(out) <= before:
        time.sleep(0.002)
    time.sleep(moment.uniform(0, 0.1))
    process.kill()
    return process.wait() == -9


def content(out: Path) -> dict[str, object]:
    folder = out / "checkpoints" / f"step-{newest(out):06d}"
    files: dict[str, object] = {p.name: p.read_bytes() for p in folder.iterdir()}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    files["metrics"] = [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]
    return files


def check(tmp_path: Path, steps: int, kills: int, seed: int) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    reference = start(whole, steps, "first")
    moment = random.Random(seed)
    survived = sum(kill_at_random(torn, steps, moment) for _ in range(kills))
    assert survived == kills, "the run ended before it could be killed: use more steps"
    assert start(torn, steps, "later").wait() == 0
    assert reference.wait() == 0
    assert newest(torn) == newest(whole) == steps
    mine, theirs = content(torn), content(whole)
    assert mine.keys() == theirs.keys()
    assert len(theirs["metrics"]) == -(-steps // 7)  # type: ignore[arg-type]
    for name, value in theirs.items():
        assert mine[name] == value, f"{name} differs after {kills} kills (seed {seed})"
    assert not list((torn / "checkpoints").glob(".*"))


def test_two_kills(tmp_path: Path) -> None:
    check(tmp_path, steps=200, kills=2, seed=0)


@pytest.mark.slow
def test_fifteen_kills(tmp_path: Path) -> None:
    check(tmp_path, steps=1200, kills=15, seed=1)
