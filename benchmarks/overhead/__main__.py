"""Solver overhead: time of a solve over the time of its network calls alone, alternated step by step.

    python -m benchmarks.overhead [--solvers pf-ode,ddim,...] [--nfe 20] [--batch 64] [--rounds 15] [--json FILE]
    python -m benchmarks.overhead --empty [--nfe 20] [--rounds 200] [--json FILE]

--empty measures steps on an empty network, with k-diffusion and diffusers (benchmarks/empty.py).
--solvers measures some solvers and keeps the other rows of the JSON file.

After every step of the solver the bundled digits network is called directly, on the same batch and as often as the step
called it, so that other load of the machine affects both equally. The ratio of a round, one run, is the sum of its step
times, planning included, over the sum of its direct calls; the result is the median over the rounds.
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

from benchmarks.overhead import empty
from sde_diffusion import ScoreModel, load
from sde_diffusion.storage.locate import BUNDLED
from solvers import SOLVERS, Step, solve


def ratio(model: ScoreModel, name: str, nfe: int, batch: int, rounds: int) -> dict[str, float]:
    """The median ratio, with quartiles over the rounds."""
    solver = SOLVERS[name]
    device = next(model.parameters()).device
    assert model.shape is not None
    process = model.sde.reverse(model, float(solver.stochastic))
    x1 = model.sde.prior((batch, *model.shape), device=device)
    t = torch.full((batch,), 0.5, device=device)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    ratios, network, calls = [], [], 0
    for _ in range(rounds + 1):
        run = whole = bare = 0.0
        calls = 0

        def step_done(step: Step) -> None:
            nonlocal run, whole, bare, calls
            stopped = now()
            fresh = int(step.nfe[0]) - calls
            for _ in range(fresh):
                model.network(x1, t)
            calls += fresh
            whole += stopped - run
            run = now()
            bare += run - stopped

        run = now()
        solve(process, x1, solver=name, nfe=nfe, on_step=step_done)
        whole += now() - run
        ratios.append(whole / bare)
        network.append(bare / calls)
    # The first round is a warm-up.
    low, _, high = statistics.quantiles(ratios[1:], n=4)
    return {
        "nfe": calls,
        "rounds": rounds,
        "ratio": statistics.median(ratios[1:]),
        "quartile_low": low,
        "quartile_high": high,
        "network_ms": 1e3 * statistics.median(network[1:]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run")
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--solvers", help="solvers; all with fixed steps by default")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, help="number of rounds; 15 by default, 200 with --empty")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.empty:
        empty.report(arguments.nfe, arguments.rounds or 200, arguments.json)
        return
    model = load(arguments.run or BUNDLED).to(arguments.device)
    able = [name for name, solver in SOLVERS.items() if not solver.adaptive]
    names = arguments.solvers.split(",") if arguments.solvers else able
    rows = {}
    with torch.no_grad():
        for name in names:
            rows[name] = ratio(model, name, arguments.nfe, arguments.batch, arguments.rounds or 15)
    table = Table("solver", "NFE", "time / network time", "quartiles", "network call, ms")
    for name, row in rows.items():
        spread = f"{row['quartile_low']:.3f} to {row['quartile_high']:.3f}"
        table.add_row(name, str(row["nfe"]), f"{row['ratio']:.3f}", spread, f"{row['network_ms']:.2f}")
    Console(width=110).print(table)
    if arguments.json:
        if arguments.solvers and arguments.json.exists():
            before = json.loads(arguments.json.read_text())["rows"] | rows
            rows = {name: before[name] for name in able if name in before}
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
