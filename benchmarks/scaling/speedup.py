"""The time of 1 and 2 processes with one thread each, in turn, on one machine.

    python -m benchmarks.scaling.speedup --rounds 4

The time is that of the work inside the command, as it prints it, without the start of Python. The ratio of a round is
of neighbouring runs, and the median over the rounds counts. Two cores that share caches and memory are less than twice
as fast as one whatever runs on them, so each round also runs two commands of half the samples at once that know nothing
of each other: ``ceiling`` is the ratio that these reach.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--nfe", type=int, default=8)
    args = parser.parse_args()
    rounds, hashes = [], set()
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.rounds):
            times = []
            for processes in (1, 2):
                out = Path(folder, f"{k}-{processes}")
                times.append(seconds(sampling(args.n, args.nfe, out), processes))
                hashes.add(json.loads((out / "samples.json").read_text())["x"]["sha256"])
            halves = [sampling(args.n // 2, args.nfe, Path(folder, f"{k}-half-{i}")) for i in range(2)]
            with ThreadPoolExecutor() as pool:
                apart = max(pool.map(seconds, halves, (1, 1)))
            one, two = times
            rounds.append(
                {"one": one, "two": two, "apart": apart, "ratio": round(one / two, 2), "ceiling": round(one / apart, 2)}
            )
            print(rounds[-1], "load", os.getloadavg()[0], flush=True)
    median = {name: statistics.median(r[name] for r in rounds) for name in ("ratio", "ceiling")}
    print(json.dumps({"median": median, "rounds": rounds, "equal samples": len(hashes) == 1}))


def sampling(n: int, nfe: int, out: Path) -> list[str]:
    """The words of the command that is timed."""
    return ["sample", "bundled", "--n", str(n), "--nfe", str(nfe), "--out", str(out)]


if __name__ == "__main__":
    main()
