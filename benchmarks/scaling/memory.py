"""Peak memory of sampling and evaluation against the number of samples.

    python -m benchmarks.scaling.memory                  # 1,000 and 100,000 samples; 1,000 and 50,000 evaluated

Each command runs by itself; the figure is the largest resident set of its process. What the network and the libraries
take is the figure of few samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.scaling.interruptions import command


def peak(words: list[str]) -> tuple[float, float, str]:
    """MiB of the largest resident set of a command, its seconds, and its last line on stderr."""
    start = time.perf_counter()
    child = subprocess.Popen(command(words, 1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, said
    return usage.ru_maxrss / 1024, time.perf_counter() - start, said.strip()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="sample,evaluate")
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--sampled", type=int, default=100_000)
    parser.add_argument("--evaluated", type=int, default=50_000)
    parser.add_argument("--nfe", type=int, default=2)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, many in (("sample", args.sampled), ("evaluate", args.evaluated)):
            if what not in args.what.split(","):
                continue
            for n in (args.few, many):
                out = str(Path(folder, f"{what}-{n}"))
                more = ["--shard-size", "1024"] if what == "sample" else []
                mib, took, said = peak(
                    [what, "bundled", "--n", str(n), "--nfe", str(args.nfe), "--solver", "ddim", "--out", out, *more]
                )
                found[f"{what} {n}"] = {"MiB": round(mib), "seconds": round(took, 1), "said": said.splitlines()}
                print(json.dumps(found[f"{what} {n}"]), flush=True)
            added = found[f"{what} {many}"]["MiB"] - found[f"{what} {args.few}"]["MiB"]  # type: ignore[operator]
            print(f"{what}: {many:,} samples take {added} MiB more than {args.few:,}", flush=True)


if __name__ == "__main__":
    main()
