"""Sampling into shards that is killed again and again, against the same sampling in one go.

    python -m benchmarks.scaling.interruptions                      # 10 kills, 20,000 digits, 1 process
    python -m benchmarks.scaling.interruptions --processes 2

The command is killed by SIGKILL with all its processes after a random time and resumed. At the end the hash of all
samples, the seeds and the files are compared with those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.sharded_set import open_set, whole_set


def command(words: list[str], processes: int) -> list[str]:
    """The words of a command line that runs sdediff in several processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "sde_diffusion", *(["--"] if launcher else []), *words]


def killed(words: list[str], processes: int, seconds: float, shards: Path) -> bool:
    """Run a command and kill it, and what it started, some time after its first file; whether it was still running."""
    before = len(list(shards.glob("*.json")))
    child = subprocess.Popen(command(words, processes), start_new_session=True, stdout=subprocess.DEVNULL)
    while child.poll() is None and len(list(shards.glob("*.json"))) <= before:
        time.sleep(0.05)
    try:
        child.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        session = child.pid
        for path in Path("/proc").glob("[0-9]*"):  # torchrun gives each of its processes a session of its own
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == session:
                os.kill(int(path.name), signal.SIGKILL)
        os.killpg(session, signal.SIGKILL)
        child.wait()
        return True


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--nfe", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds from the first file to the kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, done, kills = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        torn, whole = Path(folder, "torn"), Path(folder, "whole")
        words = ["sample", "bundled", "--n", str(args.n), "--nfe", str(args.nfe), "--shard-size", "256"]
        first = [*words, "--out", str(torn)]
        while kills < args.kills:
            begun = (torn / "job.json").is_file()
            wait = args.longest * chance.random()
            resumed = ["sample", "bundled", "--resume", str(torn)]
            if not killed(resumed if begun else first, args.processes, wait, torn / "shards"):
                break
            kills += 1
            found = open_set(torn) if (torn / "job.json").is_file() else None
            done.append(0 if found is None else found.count - len(found.missing()))
        start = time.perf_counter()
        subprocess.run(
            command(["sample", "bundled", "--resume", str(torn)], args.processes), check=True, stdout=subprocess.DEVNULL
        )
        last = time.perf_counter() - start
        subprocess.run(command([*words, "--out", str(whole)], 1), check=True, stdout=subprocess.DEVNULL)
        mine, theirs = whole_set(torn), whole_set(whole)
        seeds = torch.cat([part.seeds for part in mine.parts()])
        names = [sorted(path.name for path in (found.folder / "shards").iterdir()) for found in (mine, theirs)]
        result = {
            "samples": args.n,
            "processes": args.processes,
            "kills": kills,
            "shards after each kill": done,
            "shards": mine.count,
            "equal hash": mine.record["x"] == theirs.record["x"],
            "every seed once": torch.equal(seeds, seeds_of(0, args.n)),
            "equal files": names[0] == names[1],
            "seconds of the last run": round(last, 1),
        }
    print(json.dumps(result, indent=2))
    assert result["equal hash"] and result["every seed once"] and result["equal files"]


if __name__ == "__main__":
    main()
