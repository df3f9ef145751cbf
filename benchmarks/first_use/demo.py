"""``make demo``: train on the bundled digits, sample at 20 evaluations, and look at solvers side by side.

Every command is printed before it runs and can be typed as it stands. The last line names the picture of the samples.

    python -m benchmarks.first_use.demo
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import typer.main

from sde_diffusion.cli import app
from sde_diffusion.storage.run_folder import latest_run

MINUTES = 4  # on two idle cores, without the installation
SOLVERS, NFE = "ddim,unipc,pf-ode", "5,10,20"


def commands(run: Path, *, report: bool) -> list[str]:
    """The commands after training, for a run; the last writes a report, where ``compare`` has --html."""
    found = [
        f"sdediff sample {run} --solver pf-ode --nfe 20 --seed 1",
        f"sdediff show solvers {run} --solver {SOLVERS} --nfe {NFE} --out {run}/solvers.png",
        f"sdediff show film {run} --n 9 --nfe 30 --out {run}/film.gif",
    ]
    few = "--n 128 --paired 24 --reference-steps 100"
    page = f"sdediff compare {run} --solvers {SOLVERS} --nfe {NFE} {few} --html {run}/report.html"
    return [*found, page] if report else found


def has_report() -> bool:
    """Whether ``sdediff compare`` writes reports."""
    program: Any = typer.main.get_command(app)
    return any("--html" in parameter.opts for parameter in program.commands["compare"].params)


def run_command(command: str) -> str:
    """Run a command, print what it prints, and return it.

    Raises:
        SystemExit: the command failed, with its exit code.
    """
    print(f"\n$ {command}", flush=True)
    words = [sys.executable, "-m", "sde_diffusion", *shlex.split(command)[1:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(lines)


def demo(train: str = "sdediff train --sde vp --steps 1800") -> None:
    """Run all commands and say what they made."""
    print(f"Trains on 8 x 8 digits, samples them and compares solvers: about {MINUTES} minutes on two cores.")
    start = time.perf_counter()
    run_command(train)
    run = latest_run()
    assert run is not None  # just trained
    report = has_report()
    printed = [run_command(command) for command in commands(run, report=report)]
    picture = next(line for line in printed[0].splitlines() if line.startswith("picture "))
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at:")
    print(f"  {run}/index.html    training: samples on the way, loss, held-out loss")
    print(f"  {run}/solvers.png   DDIM, UniPC and pf-ode from the same noise at 5, 10 and 20 NFE")
    print(f"  {run}/film.gif      noise becomes digits")
    if report:
        print(f"  {run}/report.html   errors with intervals, samples of every solver, in a browser")
    print("Go on with:")
    print(f"  sdediff compare {run}               errors of solvers, with intervals")
    print(f"  sdediff tune {run} --nfe 8          a solver fitted to this network")
    print("  sdediff train --data your-images/ --size 32x32")
    print(picture)


if __name__ == "__main__":
    demo(*sys.argv[1:2])
