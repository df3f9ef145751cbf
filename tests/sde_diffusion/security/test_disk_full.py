"""A disk that fills up at any write of any command: the message names what could not be written, and a retry works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sde_diffusion.cli import app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of few samples
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root"),
]
MODEL = "bundled"
SCORES = ["--n", "8", "--processes", "1", "--metrics", "sliced-wasserstein", "--features", "pixels", "--draws", "2"]
COMMANDS = {
    "sample": ["sample", MODEL, "--n", "64", "--nfe", "1", "--out", "DISK/out"],
    "train": ["train", "--data", "x.npy", "--steps", "2", "--checkpoint-every", "1", "--batch-size", "4", "--width",
              "32", "--depth", "1", "--out", "DISK/out"],
    "evaluate": ["evaluate", MODEL, "--nfe", "1", *SCORES, "--out", "DISK/out"],
    "curve": ["evaluate", MODEL, "--nfe", "1,2", *SCORES, "--out", "DISK/out"],
    "reference": ["evaluate", MODEL, "--nfe", "1", *SCORES, "--save-reference", "DISK/r.safetensors", "--out", "e"],
    "likelihood": ["likelihood", MODEL, "--n", "2", "--solver", "heun", "--steps", "1", "--trace", "hutchinson",
                   "--elbo", "4", "--out", "DISK/out"],
    "compare": ["compare", MODEL, "--solvers", "ddim", "--nfe", "1", "--n", "4", "--paired", "2", "--reference-steps",
                "4", "--out", "DISK/out"],
    "prepare": ["prepare", "big.npy", "--out", "DISK/out"],
    "picture": ["inspect", "x.npy", "--picture", "DISK/p.png"],
}  # fmt: skip


def run(args: list[str], disk: Path) -> Result:
    return CliRunner().invoke(app, [arg.replace("DISK", str(disk)) for arg in args])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no permission to mount a small disk")
    np.save("x.npy", np.random.default_rng(0).standard_normal((32, 2)).astype(np.float32))
    np.save("big.npy", np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 4096, 8192, 16384, 65536])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_torn_is_left_and_a_retry_works(command: str, free: int, disk: Path) -> None:
    filler = disk / "filler"
    filler.write_bytes(bytes(2**20 - free))
    result = run(COMMANDS[command], disk)
    left = sorted(str(p.relative_to(disk)) for p in disk.rglob("*") if p != filler)
    if result.exit_code == 0:
        assert free > 0 and left, result.output
        return
    assert result.exit_code == 2, (result.output, result.exception)
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert "No space left" in said and ("out" in said or "r.safetensors" in said or "p.png" in said), said
    if command == "train" and left:
        # The run was made and a later checkpoint did not fit: what is there is whole, and training goes on from it.
        assert "whole checkpoint is" in said and not [p for p in left if ".partial" in p]
    else:
        assert left == []
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    again = COMMANDS[command] if not left else ["train", "--resume", "--out", "DISK/out"]
    result = run(again, disk)
    assert result.exit_code == 0, result.output
