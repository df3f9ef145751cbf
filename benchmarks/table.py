"""The table of docs/measurements.md: every solver on the bundled digits network, at 5, 10, 20 and 50 NFE.

    python -m benchmarks.table [RUN] [--n 1000] [--solvers NAME ...] [--json FILE] [--write docs/measurements.md]

- error     deterministic solvers: distance of each sample to the reference solution of the same
            network from the same initial noise (root mean square over pixels in [-1, 1]), mean over samples
- Frechet   squared Frechet distance in pixel space between n samples and the training digits

--solvers measures some solvers and keeps the other rows of the JSON file; --write replaces the table between the
markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import ScoreModel, frechet_distance, load
from sde_diffusion.data import load_data
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.sampling.sampler import sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.storage.locate import BUNDLED
from solvers import SOLVERS, Solver
from solvers.exponential.adams import ExponentialAdams

BUDGETS = (5, 10, 20, 50)
BEGIN, END = "<!-- table -->", "<!-- /table -->"


def run(model: ScoreModel, n: int, solver: str | Solver, nfe: int) -> tuple[Tensor, int]:
    """Samples (n, ...), and the largest NFE of a sample."""
    parts = list(sample_batches(model, n, SamplingSettings(solver, nfe, batch_size=250)))
    return torch.cat([p.x for p in parts]), max(int(p.nfe.max()) for p in parts)


def measure(model: ScoreModel, n: int, names: Iterable[str]) -> dict[str, Any]:
    """All measurements of some solvers."""
    data = load_data("digits")
    train = data.batch(torch.arange(len(data)))
    held_out = load_data("digits", split="test")
    test = held_out.batch(torch.arange(len(held_out)))
    fine, coarse = (run(model, n, ExponentialAdams(3, corrector=True), k)[0] for k in (400, 200))
    rows: dict[str, dict[str, list[float | None]]] = {}
    for name in names:
        solver = SOLVERS[name]
        rows[name] = {"error": [], "frechet": [], "nfe": []}
        for budget in BUDGETS:
            try:
                x, used = run(model, n, name, budget)
            except ValueError:  # the NFE is below the solver's minimum
                x, used = None, None
            fits = x is not None and bool(x.isfinite().all())
            rows[name]["error"].append(float(rms(x - fine).mean()) if fits and not solver.stochastic else None)
            rows[name]["frechet"].append(frechet_distance(x, train) if fits else None)
            rows[name]["nfe"].append(used)
        print(name, rows[name], flush=True)
    return {
        "samples": n,
        "budgets": BUDGETS,
        "reference_error": float(rms(fine - coarse).mean()),
        "reference_frechet": frechet_distance(fine, train),
        "real_frechet": frechet_distance(test, train),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    head = [f"error @{b}" for b in BUDGETS] + [f"Frechet @{b}" for b in BUDGETS]
    lines = ["| solver | order | " + " | ".join(head) + " |", "| --- | --- |" + " --- |" * len(head)]
    for name, row in result["rows"].items():
        solver = SOLVERS[name]
        cells = [_number(v, 4) for v in row["error"]] + [_number(v, 2) for v in row["frechet"]]
        kind = "weak " if solver.stochastic else ""
        lines.append(f"| `{name}` | {kind}{solver.order} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.{digits}f}" if value < 100 else f"{value:.3g}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--solvers", nargs="+", help="solvers; all with fixed steps by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    names = arguments.solvers or [name for name, solver in SOLVERS.items() if not solver.adaptive]
    with torch.no_grad():
        result = measure(load(arguments.run or BUNDLED), arguments.n, names)
    if arguments.solvers and arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if before["samples"] != arguments.n:
            raise SystemExit(f"{arguments.json} has rows of {before['samples']} samples; give --n {before['samples']}")
        result["rows"] = {**before["rows"], **result["rows"]}
    print(markdown(result))
    print({k: v for k, v in result.items() if k != "rows"})
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.write:
        text = arguments.write.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{after}")


if __name__ == "__main__":
    main()
