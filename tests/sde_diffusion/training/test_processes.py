"""Several processes: they compute what one does, resume bit for bit, stop together, and share their errors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sde_diffusion.sampling import generate
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.storage.locate import find_model

ROOT = Path(__file__).resolve().parents[3]

CHILD = """
import json, os, sys, warnings
from pathlib import Path
import torch
from sde_diffusion.data import as_data
from sde_diffusion.networks import build
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import VPSDE
from sde_diffusion.training.training_run import train

warnings.simplefilter("error")
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 2, generator=generator)
data = as_data(x, torch.randint(0, 3, (200,), generator=generator))
failed = False
for out, options in json.loads(sys.argv[1]):
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # only the weights of the first process count
    model = ScoreModel(build("mlp", shape=(2,), width=16, depth=1, classes=3), VPSDE())
    try:
        train(model, data, out=out, resume=Path(out).exists(), progress=False, device="cpu", **options)
    except (ValueError, OSError) as error:
        print(type(error).__name__, error, flush=True)
        failed = True
sys.exit(3 if failed else 0)
"""


def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


Tasks = list[tuple[str, dict[str, Any]]]


def start(tasks: Tasks, world: int, code: str = CHILD) -> list[subprocess.Popen[str]]:
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    ranks: list[dict[str, str]] = [{"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {} for r in range(world)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(tasks)], env=common | rank, stdout=subprocess.PIPE, text=True
        )
        for rank in ranks
    ]


def run(tasks: Tasks, world: int, status: int = 0) -> list[str]:
    processes = start(tasks, world)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * world, outputs
    return outputs


def checkpoint(out: Path, step: int) -> dict[str, np.ndarray]:
    folder = out / "checkpoints" / f"step-{step:06d}"
    files = [p for p in folder.iterdir() if p.suffix == ".safetensors"]
    return {f"{p.stem}.{name}": value for p in files for name, value in load_file(p).items()}


def content(out: Path, step: int) -> dict[str, object]:
    folder = out / "checkpoints" / f"step-{step:06d}"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    files: dict[str, object] = {str(p.relative_to(out)): p.read_bytes() for p in folder.iterdir()}
    files |= {str(p.relative_to(out)): p.read_bytes() for p in out.glob("snapshots/*/*")}
    return files | {"log": [{k: v for k, v in line.items() if k != "time"} for line in lines]}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2, "labels": True, "drop_label": 0.5},
    "learned": {
        "weight": "uncertainty",
        "time_sampling": "loss-second-moment",
        "ema": [0.9, 0.99],
        "ema_widths": [0.1],
    },
    "bf16": {"precision": "bf16"},
}
COMMON = {"batch_size": 64, "log_every": 7, "checkpoint_every": 10, "warmup": 5, "snapshot_every": 8}
# Constant, because otherwise the rate depends on the number of steps, and that of a first part is smaller.
COMMON |= {"schedule": "constant", "keep": 9}


@pytest.mark.slow
def test_two_processes_compute_what_one_does_and_resume_bit_for_bit(tmp_path: Path) -> None:
    def tasks(folder: str, steps: int) -> Tasks:
        return [(str(tmp_path / folder / name), COMMON | {"steps": steps} | SETTINGS[name]) for name in SETTINGS]

    for folder in ("one", "two", "parts"):
        (tmp_path / folder).mkdir()
    lone = start(tasks("one", 20), 1)
    run(tasks("two", 20) + tasks("parts", 13) + tasks("parts", 20), 2)
    lone[0].communicate()
    assert lone[0].returncode == 0
    for name in SETTINGS:
        one, two = (checkpoint(tmp_path / folder / name, 20) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        first = checkpoint(tmp_path / "one" / name, 0)
        tolerance = 2e-3 if name == "bf16" else 2e-6
        for key, value in one.items():
            if not key.startswith("optimizer"):
                np.testing.assert_allclose(value, two[key], rtol=tolerance, atol=tolerance, err_msg=f"{name} {key}")
        assert max(np.abs(one[key] - first[key]).max() for key in first if key.startswith("ema.")) > 0.01
        losses = [
            [json.loads(line)["loss"] for line in (tmp_path / folder / name / "metrics.jsonl").read_text().splitlines()]
            for folder in ("one", "two")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3 if name == "bf16" else 1e-6), name
        whole, parts = content(tmp_path / "two" / name, 20), content(tmp_path / "parts" / name, 20)
        # The first part ended with a line of the log and a snapshot of its own.
        shared = [key for key in whole if key in parts and key != "log"]
        assert len(shared) >= (8 if name == "learned" else 4)
        for key in shared:
            assert parts[key] == whole[key], (name, key)


def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = start([(str(out), COMMON | {"steps": 1_000_000, "checkpoint_every": 10_000_000})], 2)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [143, 143]
    saved = sorted(int(p.name[5:]) for p in (out / "checkpoints").iterdir())
    assert len(saved) == 2 and saved[1] > 0


EXCHANGE = """
import atexit
import torch
from sde_diffusion.parallel.processes import _leave

atexit.register(_leave)
torch.distributed.init_process_group("gloo")
shared = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
shared(torch.ones(1, 2)).sum().backward()
for _ in range(50):
    x = torch.ones(3)
    torch.distributed.all_reduce(x)
del x
"""


@pytest.mark.slow
def test_processes_end_well_right_after_an_exchange() -> None:
    # Without a moment for the threads of the group about one process in seven was aborted.
    for _ in range(12):
        processes = start([], 2, EXCHANGE)
        for process in processes:
            process.communicate(timeout=120)
        assert [process.returncode for process in processes] == [0, 0]


def test_an_error_of_the_process_that_writes_is_the_error_of_all(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "other").touch()
    (out / "config.json").write_text("{")
    new = tmp_path / "new"
    tasks: Tasks = [(str(out), COMMON | {"steps": 5}), (str(new), COMMON | {"steps": 5, "batch_size": 9})]
    for output in run(tasks, 2, status=3):
        assert output.startswith("CheckpointError") and "config.json is torn" in output
        assert "batch_size counts the samples of one update, 9; it must be a multiple of 2 = 2 (processes)" in output
    assert not new.exists()


def launched(world: int, *words: str) -> str:
    """What a command prints that torchrun starts; on the CPU ``accelerate launch`` starts one process."""
    # Behind -m the parser of torchrun would take --n for one of its own options, were it not for the two dashes.
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", port()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(torchrun if world > 1 else []), "-m", "sde_diffusion"]
    command += ["--"] * (world > 1) + list(words)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (f" on {world} processes" in done.stdout) == (world > 1)
    return done.stdout


@pytest.mark.slow
def test_torchrun_launches_the_commands_and_gets_what_one_process_gets(tmp_path: Path) -> None:
    options = ["train", "--data", "moons", "--steps", "20", "--batch-size", "64", "--width", "16", "--depth", "1"]
    for world in (1, 2):
        assert launched(world, *options, "--device", "cpu", "--out", str(world)).count("picture ") == 1  # one speaks
    one, two = (checkpoint(tmp_path / folder, 20) for folder in ("1", "2"))
    for key, value in one.items():
        if not key.startswith("optimizer"):
            np.testing.assert_allclose(value, two[key], rtol=2e-6, atol=2e-6, err_msg=key)
    launched(2, "sample", "1", "--n", "96", "--nfe", "2", "--batch-size", "32", "--out", "samples")
    alone = generate.draw(find_model("1"), 96, SamplingSettings(nfe=2, batch_size=32))
    assert json.loads(Path("samples/samples.json").read_text())["x"] == alone.record["x"]
