"""Solvers tuned within one minute of CPU, on every range of noise, against other solvers with their best grids.

    python -m benchmarks.tuned.ranges [--ranges ...] [--problems ...] [--networks ...] [--nfe 5 8 10] [--minutes 1]
        [--references DIR] [--out DIR]

The ranges, problems and networks are those of ``benchmarks.ranges``. For each of them ``tune`` gets the minutes of CPU
time of one core for all NFE together. The tuned solvers, ``pf-ode``, our own ``unipc`` and ``dpm++2m`` on five grids
each, and the UniPC and DPM-Solver++ configurations of diffusers where it is installed start from the same initial
noise, whose seeds the tuning did not use. An error is the mean over samples of the RMS distance to the reference
solution; both "best" are chosen for each cell in hindsight, by means. The few samples that start near the border
between two modes decide some means, so the medians of the same solvers stand beside them.

Every cell is written to ``tuned_ranges.json`` as soon as it is measured, and cells that the file has are not measured
again, so a run that was interrupted goes on. Reference solutions and the errors of all but the tuned solvers are kept
in ``--references``, so that a changed tuning is measured in minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Config, Task
from benchmarks.ranges import NETWORKS, KnownErrors, problems, ranges, rivals
from benchmarks.report import command_line, geometric_mean
from sde_diffusion import ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.tuning import tuned_each
from solvers import Solver, solve

NFE = (5, 8, 10)
PROBLEMS = ("images, 768", "rings, 2")
GRIDS = (None, "quadratic", "karras", "log-snr", "angle")
FIRST, SAMPLES = 900, 128


@dataclass(frozen=True)
class Problem:
    """A model with initial noise, reference solutions, and a file of the errors of the other solvers."""

    model: ScoreModel
    x1: Tensor
    truth: Tensor
    known: KnownErrors

    @classmethod
    @torch.no_grad()
    def of(cls, model: ScoreModel, stored: Path) -> Problem:
        """The problem whose reference solutions are in a ``.pt`` file, or are written to it."""
        assert model.shape is not None
        network = any(p.dtype == torch.float32 for p in model.parameters())
        dtype, steps = (torch.float32, 200) if network else (torch.float64, 400)
        x1 = model.sde.prior((SAMPLES, *model.shape), seeds=range(FIRST, FIRST + SAMPLES), dtype=dtype)
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            # In float32 a network is four times as fast, and its reference solution exact to some 1e-5.
            truth, _ = converged(model, x1, steps=steps, dtype=dtype, batch_size=64, checked=4 if network else None)
            torch.save(truth, stored)
        return cls(model, x1, torch.load(stored), KnownErrors(stored.with_suffix(".json")))

    def errors(self, x: Tensor) -> list[float]:
        """The mean and median error of samples."""
        values = [float(f(rms(x - self.truth))) for f in (torch.mean, torch.median)]
        return [v if math.isfinite(v) else math.inf for v in values]

    @torch.no_grad()
    def ours(self, solver: str | Solver, nfe: int, grid: str | None = None) -> list[float]:
        """The errors of one of our solvers."""
        return self.errors(
            solve(self.model.sde.probability_flow(self.model), self.x1, solver=solver, nfe=nfe, grid=grid).x
        )

    @torch.no_grad()
    def theirs(self, config: Config, nfe: int) -> list[float] | None:
        """The errors of a peer; None where it cannot run."""
        task = Task(self.model, self.x1)
        x = config.run(task, nfe)
        return self.errors(x) if x is not None and task.calls <= nfe else None

    def others(self, nfe: int) -> dict[str, Any]:
        """The errors of pf-ode, and of our best other solver and the best peer with their names."""
        get = self.known.get
        own = {
            f"{s} {g or 'own grid'}": get(f"{s} {g or 'own grid'}", nfe, partial(self.ours, s, nfe, g))
            for s in ("unipc", "dpm++2m")
            for g in GRIDS
        }
        peers = {str(c): get(str(c), nfe, partial(self.theirs, c, nfe)) for c in rivals()}
        ode = get("pf-ode", nfe, partial(self.ours, "pf-ode", nfe))
        self.known.write()
        return {"pf-ode": ode, "own": _best(own), "peer": _best(peers)}


def measure(problem: Problem, budgets: list[int], minutes: float) -> dict[str, dict[str, Any]]:
    """By NFE: the errors of tuned, pf-ode, our best other solver and the best peer, with the names of these."""
    found = {}
    start = time.process_time()
    for made in tuned_each(problem.model, budgets, minutes=minutes, timer=time.process_time, progress=False):
        seconds = time.process_time() - start
        found[made.nfe] = {"made": made, "stages": made.stages, "held out": made.error, "seconds": round(seconds, 1)}
    return {
        str(nfe): {"tuned": problem.ours(cell.pop("made").table, nfe), **cell, **problem.others(nfe)}
        for nfe, cell in found.items()
    }


def _best(errors: dict[str, list[float] | None]) -> list[Any] | None:
    """The name, mean and median error of the smallest mean; None without any."""
    able = {name: both for name, both in errors.items() if both is not None}
    name = min(able, key=lambda key: able[key][0], default=None)
    return None if name is None else [name, *able[name]]


def models(problem_names: list[str], range_names: list[str], networks: list[str]) -> Iterator[tuple[str, ScoreModel]]:
    """The models by range and problem: exact ones on ranges, and networks on their own."""
    for problem in problem_names:
        for label in range_names:
            yield f"{label} | {problem}", problems()[problem](ranges()[label])
    for family, members in NETWORKS.items():
        for name, (file, _) in members.items():
            if name in networks:
                yield f"{family} | {name}", load(file).eval().requires_grad_(False)


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
    sets = {name: [name] for name in names}
    own = [name for name in names if name in NETWORKS]
    if own and len(own) < len(names):
        sets |= {"all exact": [name for name in names if name not in own], "all networks": own}
    for name, members in {**sets, "all": names}.items():
        row = []
        for group in (*([n] for n in budgets), budgets):
            some = [c[str(n)] for key, c in every if key[0] in members for n in group if str(n) in c]
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
    names = [name for members in NETWORKS.values() for name in members]
    parser.add_argument("--ranges", nargs="*", default=list(ranges()), choices=list(ranges()))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(problems()))
    parser.add_argument("--networks", nargs="*", default=names, choices=names)
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--references", type=Path, default=Path("runs/tuned-references"))
    parser.add_argument("--out", type=Path, default=Path("runs/tuned-ranges"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = args.out / "tuned_ranges.json"
    command = command_line("benchmarks.tuned.ranges")
    cells: dict[str, dict[str, Any]] = json.loads(file.read_text())["cells"] if file.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, model in models(args.problems, args.ranges, args.networks):
        key = f"{name} | {args.minutes:g} min"
        if key not in cells:
            problem = Problem.of(model, args.references / f"{name}.pt")
            cells[key] = measure(problem, args.nfe, args.minutes)
            print(key, _ratios(list(cells[key].values())), flush=True)
        file.write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n")
        (args.out / "tuned_ranges.md").write_text(report(cells, command))
    print(report(cells, command))


if __name__ == "__main__":
    main()
