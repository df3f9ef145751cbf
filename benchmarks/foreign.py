"""Tuning for networks trained by others, as a user types it, against diffusers' UniPC and DPM-Solver++.

    python -m benchmarks.foreign --foreign-dir FOLDER [--nfe 5 8 10] [--minutes 1] [--samples 48] [--out DIR]

FOLDER has ``loaders.py``, whose ``load`` takes the name of a model and whose ``MODELS`` has the names. For each model
the command

    sdediff tune --model FOLDER/loaders.py:load:NAME --nfe 5,8,10 --minutes 1 --out DIR

runs as a program of its own; with ``--cpu-time`` the same tuning runs here and its minutes are of CPU time, which a
machine with other work needs. The solvers that it writes, the default, and every UniPC and DPM-Solver++ configuration
of diffusers (all orders, spacings and ends) start from the same initial noise, whose seeds the tuning did not use. An
error is the mean over samples of the RMS distance to the reference solution; the best configuration is chosen for each
NFE in hindsight, which favours the peers. Where the folder is absent nothing runs, and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peers import Config, Task, peers
from benchmarks.problems import Problem
from benchmarks.solvers import run_ours
from sde_diffusion.interop.model_spec import given_model
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.tuned_solver import file_name, load_tuned, save_tuned
from sde_diffusion.tuning import tuned_each
from solvers import SOLVERS

SEEDS = 2**44
FAMILIES = ("UniPCMultistep", "DPMSolverMultistep++", "DPMSolverSinglestep++")
REFERENCE_STEPS = 400


def names_in(folder: Path | None) -> list[str] | str:
    """The models of a folder, or the reason why there are none."""
    if folder is None:
        return "skipped: no networks of others; pass their folder with --foreign-dir"
    if not (folder / "loaders.py").is_file():
        return f"skipped: {folder} has no loaders.py"
    return sorted(runpy.run_path(str(folder / "loaders.py"))["MODELS"])


def tuned_by_command(spec: str, nfe: list[int], minutes: float, out: Path) -> float:
    """Run ``sdediff tune``; its seconds of CPU.

    Raises:
        CalledProcessError: the command fails.
    """
    import resource

    words = ["tune", "--model", spec, "--nfe", ",".join(map(str, nfe)), "--minutes", f"{minutes:g}", "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sde_diffusion", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tuned_here(spec: str, nfe: list[int], minutes: float, out: Path) -> float:
    """The same tuning with minutes of CPU time; its seconds of CPU."""
    before = time.process_time()
    stored = given_model(spec)
    for made in tuned_each(load(stored), nfe, minutes=minutes, timer=time.process_time, progress=False):
        save_tuned(out / file_name(made.nfe), made, stored)
    return time.process_time() - before


def chosen_peers() -> list[Config]:
    """Every UniPC and DPM-Solver++ configuration of diffusers; none where it is not installed."""
    return [config for config in peers(("diffusers",))[0] if config.name.startswith(FAMILIES)]


@torch.no_grad()
def measure(
    spec: str, nfe: list[int], minutes: float, samples: int, folder: Path, cpu_time: bool = False
) -> dict[str, Any]:
    """The errors of the default, the tuned solver and the best peer of one model, for each NFE."""
    seconds = (tuned_here if cpu_time else tuned_by_command)(spec, nfe, minutes, folder)
    stored = given_model(spec)
    model = load(stored)
    assert model.shape is not None
    problem = Problem(spec, model, model.shape, next(model.parameters()).dtype, reference_steps=REFERENCE_STEPS)
    x1 = problem.initial_noise(SEEDS, samples)
    endpoints, reference_error = problem.endpoints(x1)

    def error(x: torch.Tensor | None) -> float:
        apart = float("inf") if x is None else float((x.double() - endpoints).square().flatten(1).mean(1).sqrt().mean())
        return apart if apart == apart else float("inf")

    rows = []
    for n in nfe:
        tuned = load_tuned(folder / file_name(n, ""), stored, n)
        each = {str(config): error(config.run(Task(model, x1), n)) for config in chosen_peers()}
        best = min(each, key=lambda name: each[name]) if each else None
        rows.append(
            {
                "nfe": n,
                "pf-ode": error(run_ours(SOLVERS["pf-ode"], Task(model, x1), n)),
                "tuned": error(run_ours(tuned, Task(model, x1), n)),
                "best peer": None if best is None else each[best],
                "best peer is": best,
                "configurations": len(each),
            }
        )
    return {"tune_cpu_seconds": round(seconds, 1), "reference_error": reference_error, "rows": rows}


def table(found: dict[str, Any]) -> Table:
    """The errors, and their ratios."""
    out = Table(
        "model", "NFE", "pf-ode", "tuned", "best peer", "tuned / pf-ode", "tuned / best peer", "pf-ode / best peer"
    )
    for name, one in found.items():
        for row in one["rows"]:
            peer = row["best peer"]
            ratios = [row["tuned"] / row["pf-ode"], *((row[k] / peer if peer else None) for k in ("tuned", "pf-ode"))]
            errors = [row["pf-ode"], row["tuned"], peer]
            cells = [*(f"{e:.4g}" if e is not None else "" for e in errors)]
            out.add_row(name, str(row["nfe"]), *cells, *(f"{r:.2f}" if r is not None else "" for r in ratios))
    return out


def main() -> None:
    """Measure, print, and write foreign.json and foreign.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foreign-dir", type=Path)
    parser.add_argument("--nfe", nargs="+", type=int, default=[5, 8, 10])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--cpu-time", action="store_true", help="minutes of CPU time, in this process")
    parser.add_argument("--out", type=Path, help="folder of foreign.json and foreign.md; printed only by default")
    args = parser.parse_args()
    names = names_in(args.foreign_dir)
    if isinstance(names, str):
        print(names)
        return
    torch.set_num_threads(1)
    started, found = time.process_time(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            spec = f"{args.foreign_dir}/loaders.py:load:{name}"
            found[name] = measure(spec, args.nfe, args.minutes, args.samples, Path(folder) / name, args.cpu_time)
    shown = table(found)
    Console(width=130).print(shown)
    print(f"{time.process_time() - started:.0f} s of CPU beside the tuning")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        command = f"python -m benchmarks.foreign --foreign-dir FOLDER --nfe {' '.join(map(str, args.nfe))}"
        command += f" --minutes {args.minutes:g} --samples {args.samples}{' --cpu-time' if args.cpu_time else ''}"
        content = {"command": command, "models": found}
        (args.out / "foreign.json").write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "foreign.md").write_text(markdown(command, found))


def markdown(command: str, found: dict[str, Any]) -> str:
    """The table in Markdown."""
    head = "| model | NFE | pf-ode | tuned | best peer | tuned / pf-ode | tuned / peer | the best peer |"
    lines = ["# Networks trained by others", "", f"    {command}", "", head, "| --- |" + " ---: |" * 6 + " --- |"]
    for name, one in found.items():
        for row in one["rows"]:
            peer = row["best peer"]
            lines.append(
                f"| {name} | {row['nfe']} | {row['pf-ode']:.4g} | {row['tuned']:.4g} | "
                + (f"{peer:.4g}" if peer else "")
                + f" | {row['tuned'] / row['pf-ode']:.2f} | "
                + (f"{row['tuned'] / peer:.2f} | {row['best peer is']} |" if peer else " | |")
            )
    seconds = ", ".join(f"{name} {one['tune_cpu_seconds']:g}" for name, one in found.items())
    errors = ", ".join(f"{name} {one['reference_error']:.1g}" for name, one in found.items())
    return "\n".join([*lines, "", f"Seconds of CPU of the tuning: {seconds}. Error of the reference: {errors}.", ""])


if __name__ == "__main__":
    main()
