"""Solvers tuned within one minute of CPU, on every range of noise, against other solvers with their best grids.

    python -m benchmarks.tuned.ranges [--ranges ...] [--problems ...] [--nfe 5 8 10] [--minutes 1] [--out DIR]

The ranges and problems are those of ``benchmarks.ranges``. For each of them ``tune`` gets the minutes of CPU time of
one core for all NFE together. The tuned solvers, ``pf-ode``, our own ``unipc`` and ``dpm++2m`` on five grids each, and
the UniPC and DPM-Solver++ configurations of diffusers where it is installed start from the same initial noise, whose
seeds the tuning did not use. An error is the mean over samples of the RMS distance to the reference solution; both
"best" are chosen for each cell in hindsight, by means. The few samples that start near the border between two modes
decide some means, so the medians of the same solvers stand beside them.

Every cell is written to ``tuned_ranges.json`` as soon as it is measured, and cells that the file has are not measured
again, so a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Task
from benchmarks.ranges import problems, ranges, rivals
from benchmarks.report import geometric_mean
from sde_diffusion import ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.tuning import tuned_each
from solvers import Solver, solve

NFE = (5, 8, 10)
PROBLEMS = ("images, 768", "rings, 2")
GRIDS = (None, "quadratic", "karras", "log-snr", "angle")
FIRST, SAMPLES = 900, 128


@torch.no_grad()
def measure(model: ScoreModel, budgets: list[int], minutes: float) -> dict[str, dict[str, Any]]:
    """By NFE: the errors of tuned, pf-ode, our best other solver and the best peer, with the names of these."""
    assert model.shape is not None
    x1 = model.sde.prior((SAMPLES, *model.shape), seeds=range(FIRST, FIRST + SAMPLES), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=400)
    ode = model.sde.probability_flow(model)

    def error(x: Tensor | None) -> list[float]:
        values = [math.inf] * 2 if x is None else [float(f(rms(x - truth))) for f in (torch.mean, torch.median)]
        return [v if math.isfinite(v) else math.inf for v in values]

    def ours(solver: str | Solver, nfe: int, grid: str | None = None) -> list[float]:
        return error(solve(ode, x1, solver=solver, nfe=nfe, grid=grid).x)

    found = {}
    start = time.process_time()
    for made in tuned_each(model, budgets, minutes=minutes, timer=time.process_time, progress=False):
        nfe = made.nfe
        found[str(nfe)] = {"tuned": ours(made.table, nfe), "held out": made.error, "stages": made.stages}
    seconds = time.process_time() - start
    for nfe in budgets:
        cell = found[str(nfe)]
        own = {f"{s} {g or 'own grid'}": ours(s, nfe, g) for s in ("unipc", "dpm++2m") for g in GRIDS}
        theirs = {}
        for config in rivals():
            task = Task(model, x1)
            x = config.run(task, nfe)
            if x is not None and task.calls <= nfe:
                theirs[str(config)] = error(x)
        cell |= {"pf-ode": ours("pf-ode", nfe), "own": _best(own), "peer": _best(theirs), "seconds": round(seconds, 1)}
    return found


def _best(errors: dict[str, list[float]]) -> list[Any] | None:
    """The name, mean and median error of the smallest mean; None without any."""
    if not errors:
        return None
    name = min(errors, key=lambda key: errors[key][0])
    return [name, *errors[name]]


def report(cells: dict[str, dict[str, Any]], command: str) -> str:
    """The tables, in Markdown."""
    every = [(key.split(" | "), cell) for key, cell in cells.items()]
    names = list(dict.fromkeys(key[0] for key, _ in every))
    budgets = sorted({int(nfe) for _, cell in every for nfe in cell})
    heads = " | ".join(map(str, budgets))
    lines = ["# Tuned solvers on every range of noise", "", f"    {command}", ""]
    lines += ["Geometric means over the problems of the error of the tuned solver over that of the best UniPC or"]
    lines += [
        "DPM-Solver++ configuration of diffusers, by means and, after the stroke, by medians over samples;",
        "in brackets over our best `unipc` or `dpm++2m`, and over `pf-ode`.",
    ]
    lines += ["", f"| range | {heads} | all |", "| --- |" + " ---: |" * (len(budgets) + 1)]
    for name in [*names, "all"]:
        row = []
        for group in (*([n] for n in budgets), budgets):
            some = [c[str(n)] for key, c in every if name in (key[0], "all") for n in group if str(n) in c]
            row.append(_ratios(some))
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines += ["", f"| range | problem | {heads} |", "| --- | --- |" + " --- |" * len(budgets)]
    for key, cell in every:
        row = [f"{cell[str(n)]['tuned'][0]:.2g}; {_ratios([cell[str(n)]])}" if str(n) in cell else "" for n in budgets]
        lines.append(f"| {key[0]} | {key[1]} | " + " | ".join(row) + " |")
    able = [c[n] for _, c in every for n in c if c[n]["peer"]]
    by_mean = [c for c in able if c["tuned"][0] > 0.5 * c["peer"][1]]
    both = sum(c["tuned"][1] > 0.5 * c["peer"][2] for c in by_mean)
    lines += [
        "",
        f"Above half of the best peer's error: {len(by_mean)} of {len(able)} cells by the mean, {both} by mean",
    ]
    return "\n".join([*lines, "and median together.", ""])


def _ratios(some: list[dict[str, Any]]) -> str:
    def ratio(other: str, which: int = 0) -> str:
        shift = 1 if other != "pf-ode" else 0
        values = [c["tuned"][which] / max(c[other][which + shift], 1e-12) for c in some]
        return f"{geometric_mean([max(v, 1e-6) for v in values]):.2f}"

    peer = f"{ratio('peer')} / {ratio('peer', 1)}" if some and all(c["peer"] for c in some) else "-"
    return f"{peer} ({ratio('own')}, {ratio('pf-ode')})" if some else ""


def main() -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned.ranges", description=__doc__.splitlines()[0])
    parser.add_argument("--ranges", nargs="+", default=list(ranges()), choices=list(ranges()))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(problems()))
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned-ranges"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = args.out / "tuned_ranges.json"
    command = f"python -m benchmarks.tuned.ranges {shlex.join(sys.argv[1:])}".rstrip()
    cells: dict[str, dict[str, Any]] = json.loads(file.read_text())["cells"] if file.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for problem in args.problems:
        for label in args.ranges:
            key = f"{label} | {problem} | {args.minutes:g} min"
            if key not in cells:
                cells[key] = measure(problems()[problem](ranges()[label]), args.nfe, args.minutes)
                print(key, _ratios(list(cells[key].values())), flush=True)
            file.write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n")
            (args.out / "tuned_ranges.md").write_text(report(cells, command))
    print(report(cells, command))


if __name__ == "__main__":
    main()
