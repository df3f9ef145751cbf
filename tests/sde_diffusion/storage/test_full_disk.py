"""Where nothing can be written any more, the error says so and the last checkpoint is intact."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.run_folder import checkpoints
from sde_diffusion.training.training_run import train

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"batch_size": 8, "log_every": 5, "checkpoint_every": 10, "keep": 99, "progress": False}


class Net(nn.Module):
    """About 100 kB of weights; ``before`` is called at its n-th training step."""

    def __init__(self, at: int = 0, before: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 6000), nn.SiLU(), nn.Linear(6000, 2))
        self.at, self.before, self.calls = at, before, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            self.before()
        return self.layers(x)


def start(out: Path, steps: int, network: Net | None = None, resume: bool = False) -> ScoreModel:
    model = ScoreModel(network or Net(), VPSDE())
    return train(model, POINTS, out=out, steps=steps, resume=resume, schedule="constant", **OPTIONS)


def flat(model: ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def check_recovery(out: Path, last: int, make_room: Any) -> None:
    """The newest checkpoint is whole and the run goes on from it as if nothing had happened."""
    assert checkpoints(out)[0].name == f"step-{last:06d}"
    load(out, network=Net())
    assert not list((out / "checkpoints").glob(".*"))
    make_room()
    rest = start(out, 60, resume=True)
    whole = start(out.parent / "whole", 60)
    assert torch.equal(flat(rest), flat(whole))
    lines = [
        [(line["step"], line["loss"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (out, out.parent / "whole")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 12


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    def unlimited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        with pytest.raises(OSError, match=r"save step-000030 .*: File too large; .* is step-000020.*--resume"):
            start(tmp_path / "run", 60, Net(25, limit))
    finally:
        unlimited()
    check_recovery(tmp_path / "run", 20, unlimited)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


needs_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs the rights of root"
)


@needs_root
def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with mounted(small, "size=2m"):  # a checkpoint has 0.5 MB: steps 0, 10 and 20 fit
        with pytest.raises(OSError, match=r"step-0000\d0 .*: No space left on device; .* step-0000\d0\. Make room"):
            start(small / "run", 60)
        last = int(checkpoints(small / "run")[0].name[5:])
        assert 10 <= last <= 40
        check_recovery(small / "run", last, lambda: remount(small, "size=20m"))


@needs_root
def test_a_log_line_that_does_not_fit(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with mounted(small, "size=4m"):

        def fill() -> None:
            with pytest.raises(OSError, match="No space"), (small / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            # What is left of the page of the log fills up line by line.
            log = small / "run/metrics.jsonl"
            with log.open("ab") as file:
                file.write(b" " * (4096 - log.stat().st_size % 4096))

        with pytest.raises(OSError, match=r"could not save metrics.jsonl .*: No space left .* step-000010"):
            start(small / "run", 60, Net(12, fill))
        check_recovery(small / "run", 10, lambda: remount(small, "size=20m"))


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@needs_root
def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=20m"):
        start(disk / "run", 20)
        remount(disk, "ro")
        with pytest.raises(OSError, match=r"could not start a run in .*new: Read-only file system"):
            start(disk / "new", 20)
        with pytest.raises(OSError, match=r"Read-only file system.*metrics\.jsonl"):
            start(disk / "run", 40, resume=True)
        check = load(disk / "run", network=Net())
        assert flat(check).isfinite().all()
        check_recovery(disk / "run", 20, lambda: remount(disk, "rw"))
