r"""Restoration of images by the methods for linear observations, and by other libraries on the same network.

    python -m benchmarks.restoration --data-dir DATA [--network mnist] [--images 100] [--nfe 60] [--only PATTERN ...]

Tasks at noise 0.05 (white - black is 2): the lower half hidden, four times enlarged, a Gaussian blur, half of the
pixels hidden at random and, for RGB, grey to colour. The columns are the PSNR of a sample with its standard error over
images, the residual over the noise (1 if a sample fits the observation), diversity (standard deviation between two
samples of an image), backward passes and seconds. ``--seeds K`` averages the PSNR over K samples of each image. The
baselines are the mean image and bilinear enlargement. Other libraries get the same network, NFE and clamped range, one
image at a time if they couple the samples of a batch.

The JSON file is written after every row, and rows that it has are not computed again: the command can be stopped and
started, and ``--only`` takes a part of the rows by patterns of TASK/METHOD, such as ``deblurring/*``. Diversity is that
of the first 25 images, which are drawn twice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.restoration import NETWORKS, NOISE, RESULTS, Problem, baselines, figures, first, problems
from benchmarks.restoration.deepinv_peer import deepinv_methods
from benchmarks.restoration.methods import OURS
from benchmarks.restoration.peers import azula_methods
from sde_diffusion import ScoreModel, load, sample
from sde_diffusion.data import load_data
from sde_diffusion.guidance import Observed
from sde_diffusion.sampling.restoration import SOLVER, times_of
from solvers.errors import InputError, NonFiniteError

VARIED = 25  # images that are drawn twice
DATA = {"mnist": "mnist", "cifar16": "cifar10"}


def images_of(name: str, data_dir: Path | None, images: int) -> tuple[Tensor, Tensor]:
    """Test images of a network's data, and the mean of its training images."""
    halves = name == "cifar16"

    def part(split: str, n: int) -> Tensor:
        x = load_data(DATA[name], split=split, data_dir=data_dir).batch(slice(None, n)).float()
        return torch.nn.functional.avg_pool2d(x, 2) if halves else x

    return part("test", images), part("train", 5000).mean(0, keepdim=True)


Draw = Callable[[Problem, int], Tensor]
"""(problem, seed) -> a sample for each image of the problem."""


def ours(model: ScoreModel, method: Callable[..., Observed], nfe: int, problem: Problem, seed: int) -> Tensor:
    """Samples of a method of this project; NaN where any is not finite."""
    observed = method(model, problem.operator, problem.y, NOISE, clip=(-1.0, 1.0))
    n = len(problem.truth)
    try:
        return sample(observed, n, solver=SOLVER, nfe=nfe, grid=times_of(observed, nfe), batch_size=n, seed=seed)
    except NonFiniteError:
        return torch.full((n, *observed.shape), torch.nan)


def theirs(model: ScoreModel, run: Any, problem: Problem, seed: int) -> Tensor:
    """Samples of another library's method."""
    n = len(problem.truth)
    torch.manual_seed(seed)
    seeds = range(seed * n, (seed + 1) * n)
    found: Tensor = run(problem.operator, problem.y, model.sde.prior(problem.truth.shape, seeds=seeds))
    return found


def jobs(model: ScoreModel, problem: Problem, nfe: int, peers: bool) -> Iterator[tuple[str, Draw, int]]:
    """Method, its samples, and backward passes for each sample."""
    for name, x in baselines(problem).items():
        yield name, lambda part, _, x=x: x[: len(part.truth)], 0
    for name, method in OURS.items():
        try:
            observed = method(model, problem.operator, problem.y, NOISE, clip=(-1.0, 1.0))
        except InputError as error:
            print(f"{problem.name}/{name} is left out: {error}")
            continue
        yield name, partial(ours, model, method, nfe), int(observed.backward) * nfe
    for name, run in (peer_methods(model, nfe) if peers else {}).items():
        yield name, partial(theirs, model, run), nfe * backward_passes(name)


def peer_methods(model: ScoreModel, nfe: int) -> dict[str, Any]:
    """The samplers of azula, and of deepinv where it is installed."""
    found: dict[str, Any] = azula_methods(model, nfe)
    try:
        return found | deepinv_methods(model, nfe)
    except ImportError as error:
        print(f"deepinv is left out: {error}")
        return found


def backward_passes(name: str) -> int:
    """Backward passes through the network in one evaluation of another library's method."""
    return 4 if "MMPS" in name or "moment" in name else 0 if "DiffPIR" in name else 1


def settings_of(row: dict[str, Any]) -> tuple[int, int, int]:
    """What makes two rows of a method comparable."""
    return row["nfe"], row["images"], row["seeds"]


def measure(options: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """One row for each task and method; those of the file are kept."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    rows = [row | {"seeds": row.get("seeds", 1)} for row in rows]
    done = {(r["task"], r["method"]) for r in rows if settings_of(r) == settings_of(vars(options))}
    model = load(NETWORKS / f"{options.network}.safetensors").eval()
    for problem in problems(*images_of(options.network, options.data_dir, options.images)):
        for method, run, backward in jobs(model, problem, options.nfe, not options.no_peers):
            path_of_row = f"{problem.name}/{method}"
            wanted = not options.only or any(fnmatchcase(path_of_row, pattern) for pattern in options.only)
            if not wanted or (problem.name, method) in done:
                continue
            start = time.perf_counter()
            draws = [run(problem, seed) for seed in range(options.seeds)]
            seconds = (time.perf_counter() - start) / options.seeds
            other = run(first(problem, VARIED), options.seeds)
            row = {"task": problem.name, "method": method, **figures(problem, draws, other), "backward": backward}
            settings = {"nfe": options.nfe, "images": options.images, "seeds": options.seeds}
            rows.append(row | {"seconds": seconds, **settings})
            print(rows[-1], flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, by task and falling PSNR."""
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    lines = [
        "| task | method | PSNR of a sample | residual / noise | diversity | finite | backward | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['task']} | {r['method']} | {r['psnr']:.2f} +- {r['psnr_error']:.2f} | {r['residual']:.2f} | "
        f"{_shown(r['diversity'])} | {r['finite']:.0%} | {r['backward']} | {r['seconds']:.1f} |"
        for r in sorted(rows, key=lambda r: (tasks.index(r["task"]), -r["psnr"]))
    ]
    return "\n".join(lines) + "\n"


def _shown(diversity: float) -> str:
    """The diversity; that of samples that ran away in few digits."""
    return f"{diversity:.0e}" if diversity > 1000 else f"{diversity:.3f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.restoration", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", choices=list(DATA), default="mnist")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--nfe", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1, help="samples of each image whose PSNR is averaged")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="TASK/METHOD, with *")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images < 2 or options.nfe < 2 or options.seeds < 1:
        parser.error(
            f"--images and --nfe are at least 2, --seeds 1; got {options.images}, {options.nfe} and {options.seeds}"
        )
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "restoration" if options.network == "mnist" else f"restoration-{options.network}"
    rows = measure(options, options.out / f"{name}.json")
    text = f"# Restoration of {options.network}\n\nNoise {NOISE}, solver {SOLVER}.\n"
    for nfe, images, seeds in sorted({settings_of(r) for r in rows}, reverse=True):
        same = [r for r in rows if settings_of(r) == (nfe, images, seeds)]
        text += (
            f"\nMade by `python -m benchmarks.restoration --network {options.network} --images {images} --nfe {nfe} "
            f"--seeds {seeds}`:\n\n{table(same)}"
        )
    (options.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
