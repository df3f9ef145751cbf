"""The time of 1 and 2 processes with one thread each, in turn, on one machine.

    python -m benchmarks.scaling.speedup --rounds 4

The time is that of the work inside the command, as it prints it, without the start of Python. The ratio of a round is
of neighbouring runs; the best is the one that other work on the machine disturbed least.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.scaling.interruptions import command


def seconds(words: list[str], processes: int) -> float:
    """The seconds that a command says it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(words, processes), check=True, capture_output=True, text=True, env=environment)
    found = re.search(r"in (\d+\.\d+) s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--nfe", type=int, default=8)
    args = parser.parse_args()
    rounds, hashes = [], set()
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.rounds):
            times = []
            for processes in (1, 2):
                out = Path(folder, f"{k}-{processes}")
                words = ["sample", "bundled", "--n", str(args.n), "--nfe", str(args.nfe), "--out", str(out)]
                times.append(seconds(words, processes))
                hashes.add(json.loads((out / "samples.json").read_text())["x"]["sha256"])
            rounds.append({"one": times[0], "two": times[1], "ratio": round(times[0] / times[1], 2)})
            print(rounds[-1], "load", os.getloadavg()[0], flush=True)
    best = max(r["ratio"] for r in rounds)
    print(json.dumps({"best ratio": best, "rounds": rounds, "equal samples": len(hashes) == 1}))


if __name__ == "__main__":
    main()
