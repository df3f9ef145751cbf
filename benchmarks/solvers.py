"""Distance of samples to the reference solution of the model, for our solvers and those of three libraries.

    python -m benchmarks.solvers [--problems digits checkerboard spectrum] [--run RUN]
        [--nfe 5 6 8 10 15 20 30 50] [--samples 128] [--sets 3] [--out DIR] [--quick]

Each sampler starts from the same initial noise at the same log-SNR, may call the model N times, and is
measured by the distance of each sample to the endpoint of the same model's probability flow: root
mean square over the dimensions, then mean over the samples. A sampler that cannot use exactly N
evaluations takes the largest possible number below N.

Every pair of sampler and NFE is one line of ``records.jsonl`` in the output folder, with the
errors of single samples; existing lines are not computed again. ``report.md``,
``report.json`` and the plots are written from them; ``benchmarks.report`` merges several.

``tuned`` is the solver of ``sde_diffusion.tune`` for the problem and each NFE of ``--tuned``, fitted on
separate initial noise; the tuned solvers are stored in the folder.

There are 350 configurations of peers. They are first run on a few other samples (``--screen``), and
only the best at each NFE (``--keep``) run on all samples; ``--screen 0`` runs all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor

from benchmarks import problems as problem_table
from benchmarks.peers import LIBRARIES, Config, Task, peers
from benchmarks.problems import Problem
from benchmarks.report import write_report
from sde_diffusion import GaussianMixture
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from sde_diffusion.tuning.tuner import DEFAULT_SOLVER, tuned_each
from solvers import SOLVERS, ReverseProcess, solve
from solvers.errors import choose
from solvers.fitted.dimensions import is_large
from solvers.fitted.engine import noise_of_start
from solvers.fitted.pf_ode import ProbabilityFlow, fitted_table
from solvers.solver import Solver

NFE = (5, 6, 8, 10, 15, 20, 30, 50)
OURS = "sdediff"
TUNED = "tuned"
_SCREEN_SEEDS = 2**40


def run_ours(solver: Solver, task: Task, nfe: int) -> Tensor | None:
    """One of our solvers; its evaluations are counted at the model, like those of the peers."""
    if nfe < solver.evaluations(1):
        return None

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        task.calls += 1
        return task.model.denoise(x, t)

    return solve(ReverseProcess(denoise, task.model.sde), task.x1, solver=solver, nfe=nfe).x


def tuned_path(problem: Problem, folder: Path, nfe: int) -> Path:
    """Path of the solver tuned for a problem and NFE."""
    return folder / "tuned" / f"{problem.name}-{problem.fingerprint}-{nfe}.json"


def make_tuned(problem: Problem, folder: Path, budgets: Sequence[int], samples: int = 128) -> None:
    """Tune the solvers for a problem, and store each as soon as it is fitted."""
    started = time.perf_counter()
    for made in tuned_each(problem.model, budgets, shape=problem.shape, noise_samples=samples, held_out=samples):
        path = tuned_path(problem, folder, made.nfe)
        path.parent.mkdir(parents=True, exist_ok=True)
        now = time.perf_counter()
        content = {"seconds": round(now - started, 1), "stages": made.stages, "solver": describe_solver(made.table)}
        path.write_text(json.dumps(content))
        started = now


def run_tuned(problem: Problem, folder: Path, task: Task, nfe: int) -> Tensor:
    """The solver tuned for a problem and NFE, fitted or read."""
    path = tuned_path(problem, folder, nfe)
    if not path.exists():
        make_tuned(problem, folder, (nfe,))
    result = run_ours(restore_solver(json.loads(path.read_text())["solver"]), task, nfe)
    assert result is not None
    return result


def ours(names: Iterable[str] | None = None) -> list[Config]:
    """Our deterministic solvers with a fixed number of steps.

    Raises:
        ValueError: an unknown name, or a solver that is not deterministic with fixed steps.
    """
    able = {
        name: solver
        for name, solver in SOLVERS.items()
        if not solver.stochastic and not solver.adaptive and solver.needs[0] is ReverseProcess
    }
    chosen = able if names is None else {n: choose(n, able, "deterministic solver") for n in names}
    return [Config(OURS, name, partial(run_ours, solver)) for name, solver in chosen.items()]


@torch.no_grad()
def settings_of(config: Config, problem: Problem, nfe: int, folder: Path) -> str:
    """A hash of the behaviour of one of our solvers, so that records of an earlier version are not used.

    The hash is of a run on two Gaussians in 2-D, which every change of weights or grid changes, and for the
    default solver from all numbers of its table too, since one run does not see those for other kinds of data. Of
    ``tuned`` it is that of the file.
    """
    if config.library != OURS:
        return ""
    if config.name == TUNED:
        made = tuned_path(problem, folder, nfe)
        return hashlib.sha256(made.read_bytes()).hexdigest()[:12] if made.exists() else ""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
    probe = Task(GaussianMixture(means, std=0.3, sde=problem.model.sde), means.flip(0))
    large = is_large(problem.shape, noise_of_start(problem.model.sde), nfe)
    default = ProbabilityFlow(large=large)
    x = run_ours(default, probe, nfe) if config.name == DEFAULT_SOLVER else config.run(probe, nfe)
    result = None if x is None else [f"{v:.6f}" for v in x.flatten().tolist()]
    if config.name == DEFAULT_SOLVER:
        result = [result, fitted_table(problem.model.sde, nfe, large)]
    return hashlib.sha256(repr(result).encode()).hexdigest()[:12]


@dataclass
class Records:
    """The lines of ``records.jsonl``, by key."""

    path: Path
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Records:
        """Read the existing lines; an incomplete line of an interrupted run is removed."""
        records = cls(path)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        for line in map(json.loads, whole.splitlines()):
            records.lines[line["key"]] = line
        return records

    def add(self, line: dict[str, Any]) -> None:
        """Append."""
        self.lines[line["key"]] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class InitialNoise:
    """Initial noise and its endpoints, for several sets of samples or for the screening."""

    label: str
    x1: Tensor
    endpoints: Tensor
    sets: int


def with_references(
    problem: Problem, first: int, n: int, sets: int, label: str, out: Path
) -> tuple[InitialNoise, float]:
    """Initial noise with its endpoints, stored or computed, and the endpoints' error."""
    x1 = problem.initial_noise(first, n * sets)
    path = out / "references" / f"{problem.name}-{problem.fingerprint}-{label}-{first}-{n * sets}.npz"
    if path.exists():
        stored = np.load(path)
        x, error = torch.from_numpy(stored["x"]).to(x1.device), float(stored["error"])
    else:
        x, error = problem.endpoints(x1)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=x.cpu().numpy(), error=error)
    return InitialNoise(label, x1, x, sets), error


@torch.no_grad()
def measure(problem: Problem, config: Config, nfe: int, starts: InitialNoise, batch: int) -> dict[str, Any]:
    """Run once; the error of every sample, or None if one is not finite or the sampler did not run.

    Raises:
        RuntimeError: more evaluations than allowed.
    """
    errors, calls, started = [], 0, time.perf_counter()
    for x1, target in zip(starts.x1.split(batch), starts.endpoints.split(batch), strict=True):
        task = Task(problem.model, x1)
        x = config.run(task, nfe // problem.model.cost)
        if x is None:
            return {"calls": 0, "errors": None, "seconds": 0.0}
        calls = task.calls
        errors.append(rms(x - target))
    if calls * problem.model.cost > nfe:
        raise RuntimeError(f"{config} made {calls} calls with an NFE of {nfe}")
    error = torch.cat(errors)
    finite = bool(error.isfinite().all())
    return {
        "calls": calls,
        "errors": [float(f"{e:.5g}") for e in error.tolist()] if finite else None,
        "seconds": round(time.perf_counter() - started, 4),
    }


def compute(
    problem: Problem,
    jobs: list[tuple[Config, int]],
    starts: InitialNoise,
    records: Records,
    batch: int,
    console: Console,
) -> list[dict[str, Any]]:
    """The records of all jobs, computing those that are missing."""
    found: list[dict[str, Any]] = []
    keys = {
        (str(config), nfe): "|".join(
            map(
                str,
                (
                    problem.name,
                    problem.fingerprint,
                    config,
                    nfe,
                    starts.label,
                    len(starts.x1),
                    settings_of(config, problem, nfe, records.path.parent),
                ),
            )
        )
        for config, nfe in jobs
    }
    missing = [job for job in jobs if keys[str(job[0]), job[1]] not in records.lines]
    for config, nfe in track(missing, f"{problem.name} {starts.label}", console=console):
        try:
            result = measure(problem, config, nfe, starts, batch)
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            if config.library == OURS:
                raise
            # A peer that fails at this NFE is left out, and the record has the reason.
            result = {"calls": 0, "errors": None, "seconds": 0.0, "failed": repr(error)[:200]}
        head = {
            "problem": problem.name,
            "library": config.library,
            "solver": config.name,
            "nfe": nfe,
        }
        records.add({"key": keys[str(config), nfe], **head, "sets": starts.sets, **result})
    for config, nfe in jobs:
        found.append(records.lines[keys[str(config), nfe]])
    return found


def best_of(lines: list[dict[str, Any]], keep: int) -> set[tuple[str, int]]:
    """(name, nfe) of the lines with the smallest mean error at each NFE."""
    kept: set[tuple[str, int]] = set()
    ranked = sorted((x for x in lines if x["errors"]), key=lambda x: float(np.mean(x["errors"])))
    for nfe in {x["nfe"] for x in lines}:
        here = [x for x in ranked if x["nfe"] == nfe][:keep]
        kept |= {(f"{x['library']}: {x['solver']}", nfe) for x in here}
    return kept


def _problems(args: argparse.Namespace) -> Iterator[Problem]:
    for name in args.problems:
        yield choose(name, problem_table.EXACT, "problem")()
    for path in args.run:
        yield problem_table.run(path, args.reference_steps)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.solvers", description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(problem_table.EXACT))
    parser.add_argument("--run", nargs="*", default=[], help="run directories or checkpoints")
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE))
    parser.add_argument("--solvers", nargs="*", help="our solvers; all deterministic ones by default")
    parser.add_argument("--tuned", nargs="*", type=int, default=[5, 6, 8, 10, 15], help="NFE to tune for")
    parser.add_argument(
        "--tune-samples", type=int, default=128, help="number of noise samples for fits, and as many held out"
    )
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--samples", type=int, default=128, help="number of samples in each set")
    parser.add_argument("--sets", type=int, default=3, help="number of disjoint sets of samples")
    parser.add_argument(
        "--screen", type=int, default=16, help="number of samples for the screening of peers; 0: no screening"
    )
    parser.add_argument("--keep", type=int, default=12, help="number of peers kept at each NFE")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--reference-steps", type=int, default=800, help="of the reference of a run")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-solvers"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="16 samples, NFE 5 10 20")
    args = parser.parse_args(argv)
    if args.quick:
        args.samples, args.nfe, args.tuned = 16, [5, 10, 20], []
    if min(args.nfe) < 1:
        parser.error(f"--nfe is a number of model evaluations, at least 1; got {min(args.nfe)}")
    if args.samples < 2 or args.sets < 1:
        parser.error(f"an interval needs at least 2 samples in 1 set; got {args.samples} in {args.sets}")
    return args


def command_of(argv: Sequence[str]) -> str:
    """The command for the report, without the folder, which does not affect the results."""
    folder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    folder.add_argument("--out")
    return " ".join(["python -m benchmarks.solvers", *folder.parse_known_args(argv)[1]])


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and write the report."""
    args = _arguments(argv)
    command = command_of(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    records = Records.open(args.out / "records.jsonl")
    mine = ours(args.solvers)
    theirs, missing = peers(tuple(args.libraries))
    for library, reason in missing.items():
        console.print(f"[yellow]skipped {library}: not installed ({reason})")
    console.print(f"{len(mine)} solvers, {len(theirs)} peer configurations")
    lines: list[dict[str, Any]] = []
    references: dict[str, float] = {}
    for problem in _problems(args):
        n = min(args.samples, problem.samples)
        # Not for the screening: a better reference does not change the selected peers.
        label = f"full-{problem.reference_steps}"
        starts, references[problem.name] = with_references(problem, 0, n, args.sets, label, args.out)
        contenders = [(config, nfe) for config in theirs for nfe in args.nfe]
        if args.screen:
            few, _ = with_references(problem, _SCREEN_SEEDS, args.screen, 1, "screen", args.out)
            kept = best_of(compute(problem, contenders, few, records, args.batch, console), args.keep)
            contenders = [(c, nfe) for c, nfe in contenders if (str(c), nfe) in kept]
        # A problem of thousands of dimensions with an exact flow is not worth a large Jacobian.
        wanted = [n for n in args.tuned if n in args.nfe and problem.samples >= args.tune_samples]
        to_make = [nfe for nfe in wanted if not tuned_path(problem, args.out, nfe).exists()]
        if to_make:
            make_tuned(problem, args.out, to_make, args.tune_samples)
        made = Config(OURS, TUNED, partial(run_tuned, problem, args.out))
        jobs = [(config, nfe) for config in mine for nfe in args.nfe] + contenders
        jobs += [(made, nfe) for nfe in wanted]
        lines += compute(problem, jobs, starts, records, args.batch, console)
        # After every problem, so that an interrupted run keeps its results.
        write_report(lines, references, args.out, missing, command)
    console.print(Markdown((args.out / "report.md").read_text()))


if __name__ == "__main__":
    main()
