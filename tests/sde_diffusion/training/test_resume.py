"""Killed with -9 at random moments and resumed, a run ends bit-equal to an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# One process imports everything and forks the trainers: importing torch would take longer than the training.
DRIVER = """
import os, random, signal, socket, sys, time
from pathlib import Path
import torch
from torch import nn
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import VPSDE
from sde_diffusion.training.training_run import train
import accelerate, torch._dynamo, torch.nn.parallel  # imported lazily otherwise, in every trainer again

torch.set_num_threads(1)
folder, steps, kills, seed, world = Path(sys.argv[1]), *map(int, sys.argv[2:6])
OPTIONS = dict(
    steps=steps, batch_size=8, log_every=7, checkpoint_every=10, warmup=10, snapshot_every=25, device="cpu",
    ema=(0.9, 0.99), ema_widths=(0.1,), weight="uncertainty", time_sampling="loss-second-moment",
    precision="fp16" if world == 1 else "bf16", accumulate=3 - world, progress=False,
)

class Net(nn.Module):  # dropout and batch statistics are the state that is easiest to lose
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 2)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))

def trainers(out, first):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if world > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                                   "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                # The first process alone has the right initial weights: the others must take the saved ones.
                torch.manual_seed(0 if first else 1)
                x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
                train(ScoreModel(Net(), VPSDE()), x, out=out, resume=out.exists(), **OPTIONS)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children

def wait(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

def newest(out):
    return max([int(p.name[5:]) for p in (out / "checkpoints").glob("step-*")], default=-1)

assert wait(trainers(folder / "whole", True)) == [0] * world
moment = random.Random(seed)
out, killed = folder / "torn", 0
while killed < kills:
    before = newest(out)
    children = trainers(out, before < 0)
    # Sometimes before there is anything new, even while the run is opened; mostly some checkpoints later.
    target = before + moment.choice([0, 10, 10, 20])
    while target > before and newest(out) < target:
        time.sleep(0.001)
    time.sleep(moment.uniform(0, 0.02 if target > before else 0.3))
    for child in moment.sample(children, world):
        os.kill(child, signal.SIGKILL)
    killed += wait(children) == [-9] * world
    assert newest(out) < steps, f"the run ended after {killed} kills: use more steps"
assert wait(trainers(out, newest(out) < 0)) == [0] * world
"""


def content(out: Path) -> dict[str, object]:
    files: dict[str, object] = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "metrics.jsonl"
    }
    lines = (out / "metrics.jsonl").read_text().splitlines()
    files["metrics"] = [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]
    return files


def check(tmp_path: Path, steps: int, kills: int, seed: int, world: int = 1) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), *map(str, (steps, kills, seed, world))]
    assert subprocess.run(command, env=environment, timeout=600).returncode == 0
    mine, theirs = content(tmp_path / "torn"), content(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert len(theirs["metrics"]) == -(-steps // 7)  # type: ignore[arg-type]
    newest = f"checkpoints/step-{steps:06d}/"
    assert {newest + f"{name}.safetensors" for name in ("model", "ema", "ema-0.99", "optimizer", "weight", "times")} < (
        theirs.keys()
    )
    for name, value in theirs.items():
        assert mine[name] == value, f"{name} differs after {kills} kills (seed {seed})"


def test_two_kills(tmp_path: Path) -> None:
    check(tmp_path, steps=200, kills=2, seed=0)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    check(tmp_path, steps=1500, kills=50, seed=1)


@pytest.mark.slow
def test_ten_kills_of_two_processes(tmp_path: Path) -> None:
    check(tmp_path, steps=400, kills=10, seed=2, world=2)
