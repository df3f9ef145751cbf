"""Error of pf-ode on held-out problems, relative to the other solvers of the library.

    python -m benchmarks.held_out [--nfe 5 6 8 10 15 20 30 50] [--data-dir DATA]

Ten exact problems, all with an RMS error to the reference solution from the same initial noise: mixtures on digits at
24 x 24 without more contrast (two widths), mixtures of Gaussians in 3, 32 and 900 dimensions, Gaussians with falling
variances in 100 and 3,000 dimensions and with equal ones in 1,000, and mixtures on 300 CIFAR-10 images (two widths;
left out if DATA has none). No table was fitted to these problems. The command prints the error of pf-ode over the error
of the best other deterministic solver with fixed steps, chosen per cell in hindsight: by the mean over samples, and by
the median, which is robust to single samples between two modes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.problems import gaussian_spectrum
from benchmarks.report import geometric_mean
from sde_diffusion import VPSDE, GaussianMixture, ScoreModel
from sde_diffusion.data import load_data
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import SOLVERS, solve

OURS = "pf-ode"


def cloud(n: int, d: int, size: float, std: float) -> Callable[[VPSDE], ScoreModel]:
    """Gaussians at random places."""
    means = size * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d + 1000))
    return lambda sde: GaussianMixture(means, std=std, sde=sde)


def falling(d: int, power: float, mean: float) -> Callable[[VPSDE], ScoreModel]:
    """A Gaussian whose variances fall as a power of the index, scaled to a given mean."""
    variances = torch.arange(1, d + 1, dtype=torch.float64) ** -power
    return lambda sde: gaussian_spectrum(variances * (mean / variances.mean()), sde)


def problems(data_dir: Path) -> Iterator[tuple[str, ScoreModel | None]]:
    """Names and models of the problems; None if the data is missing."""
    sde = VPSDE()
    images = torch.from_numpy(load_digits().images / 8 - 1)[:, None]
    images = interpolate(images, size=24, mode="bilinear", align_corners=False).reshape(len(images), -1)
    yield "digits 24 x 24, wide", GaussianMixture(images[:300], std=0.15, sde=sde)
    yield "digits 24 x 24, narrow", GaussianMixture(images[300:600], std=0.05, sde=sde)
    for name, made in {
        "cloud, 3": cloud(8, 3, 0.5, 0.1),
        "cloud, 32": cloud(40, 32, 0.5, 0.1),
        "cloud, 900": cloud(30, 900, 0.6, 0.1),
        "Gaussian, 100": falling(100, 1.2, 0.3),
        "Gaussian, 3000": falling(3000, 1.1, 0.25),
        "Gaussian, equal": falling(1000, 0.0, 0.25),
    }.items():
        yield name, made(sde)
    try:
        photos: Tensor | None = load_data("cifar10", data_dir).batch(slice(20_000, 20_300)).double().reshape(300, -1)
    except FileNotFoundError:
        photos = None
    for name, std in (("CIFAR-10, narrow", 0.1), ("CIFAR-10, wide", 0.3)):
        yield name, None if photos is None else GaussianMixture(photos, std=std, sde=sde)


def others() -> list[str]:
    """The deterministic solvers with fixed steps that are not the default."""
    return [name for name, solver in SOLVERS.items() if not (solver.stochastic or solver.adaptive or name == OURS)]


@torch.no_grad()
def measure(model: ScoreModel, budgets: list[int], samples: int) -> dict[int, tuple[float, float]]:
    """By NFE: mean and median error of pf-ode over the smallest of the other solvers."""
    assert model.shape is not None
    x1 = model.sde.prior((samples, *model.shape), seeds=range(samples), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=400)
    ode = model.sde.probability_flow(model)
    found = {}
    for nfe in budgets:
        errors = {
            name: rms(solve(ode, x1, solver=name, nfe=nfe).x - truth)
            for name in (OURS, *others())
            if nfe >= SOLVERS[name].evaluations(1)
        }
        mean, median = ({name: float(of(e)) for name, e in errors.items()} for of in (torch.mean, torch.median))
        found[nfe] = _over_others(mean), _over_others(median)
    return found


def _over_others(errors: dict[str, float]) -> float:
    return errors[OURS] / min(error for name, error in errors.items() if name != OURS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.held_out", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=[5, 6, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    if min(args.nfe) < 1:
        parser.error(f"--nfe is a number of model evaluations, at least 1; got {min(args.nfe)}")
    if args.samples < 1:
        parser.error(f"--samples is at least 1; got {args.samples}")
    torch.set_num_threads(1)
    console = Console(width=160)
    table = Table("mean, median", *map(str, args.nfe))
    ratios: dict[int, list[tuple[float, float]]] = {nfe: [] for nfe in args.nfe}
    for name, model in problems(args.data_dir):
        if model is None:
            console.print(f"left out: {name} (no CIFAR-10 in {args.data_dir}; --data-dir says where it is)")
            continue
        found = measure(model, args.nfe, args.samples)
        for nfe, both in found.items():
            ratios[nfe].append(both)
        table.add_row(name, *(f"{mean:.2f}, {median:.2f}" for mean, median in found.values()))
    means = (tuple(map(geometric_mean, zip(*ratios[nfe], strict=True))) for nfe in args.nfe)
    table.add_row("geometric mean", *(f"{mean:.2f}, {median:.2f}" for mean, median in means), style="bold")
    console.print(table)


if __name__ == "__main__":
    main()
