"""Solver overhead: time of a solve over the time of its network calls alone, alternated in one run.

    python -m benchmarks.overhead [--solvers pf-ode,ddim,...] [--nfe 20] [--batch 64] [--rounds 15] [--json FILE]

The bare side calls the bundled digits network on the same batch as often as the solve does. Rounds alternate the two
sides; the figure is the median of the ratios of neighbouring rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sde_diffusion import ScoreModel, load
from sde_diffusion.places import BUNDLED
from solvers import SOLVERS, solve


def ratio(model: ScoreModel, name: str, nfe: int, batch: int, rounds: int) -> dict[str, float]:
    """Median ratio with the spread of the rounds."""
    solver = SOLVERS[name]
    device = next(model.parameters()).device
    process = model.sde.reverse(model, float(solver.stochastic))
    x1 = model.sde.prior((batch, *model.shape), device=device)
    t = torch.full((batch,), 0.5, device=device)
    calls = int(solve(process, x1, solver=name, nfe=nfe).nfe[0])

    def timed(run: object) -> float:
        start = time.perf_counter()
        run()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def bare() -> None:
        for _ in range(calls):
            model.network(x1, t)

    def whole() -> None:
        solve(process, x1, solver=name, nfe=nfe)

    timed(bare), timed(whole)
    ratios, network = [], []
    for k in range(rounds):
        sides = (bare, whole) if k % 2 else (whole, bare)
        seconds = {side: timed(side) for side in sides}
        ratios.append(seconds[whole] / seconds[bare])
        network.append(seconds[bare] / calls)
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "nfe": calls,
        "ratio": statistics.median(ratios),
        "quartile_low": low,
        "quartile_high": high,
        "network_ms": 1e3 * statistics.median(network),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run")
    parser.add_argument("--solvers", default=",".join(n for n, s in SOLVERS.items() if not s.adaptive))
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load(arguments.run or BUNDLED).to(arguments.device)
    rows = {}
    with torch.no_grad():
        for name in arguments.solvers.split(","):
            rows[name] = ratio(model, name, arguments.nfe, arguments.batch, arguments.rounds)
    table = Table("solver", "NFE", "time / network time", "quartiles", "network call, ms")
    for name, row in rows.items():
        spread = f"{row['quartile_low']:.3f} to {row['quartile_high']:.3f}"
        table.add_row(name, str(row["nfe"]), f"{row['ratio']:.3f}", spread, f"{row['network_ms']:.2f}")
    Console(width=110).print(table)
    if arguments.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
