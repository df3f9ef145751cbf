"""The training set of models that ``benchmarks.design`` fits the tables of ``pf-ode`` to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.design.images import letters, strokes
from benchmarks.problems import gaussian_spectrum
from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, load
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.tuning.fit import TableFit, objective, run
from sde_diffusion.tuning.grid_families import spaced
from sde_diffusion.tuning.grid_search import search
from solvers import Solver, solve
from solvers.exponential.adams import ExponentialAdams

FEW = 32
_SEED = 2**42
_BATCH = 64  # what fits into the caches


@dataclass(frozen=True)
class TrainingProblem:
    """A model of the training set.

    Attributes:
        name: as printed.
        fit: initial noise samples to fit on.
        held: initial noise samples that decide.
        network: whether the model is expensive.
    """

    name: str
    fit: TableFit
    held: TableFit
    network: bool = False

    @property
    def few(self) -> TableFit:
        """The first samples."""
        return self.part(FEW // 2 if self.network else FEW)

    def part(self, n: int) -> TableFit:
        """The first n samples."""
        return TableFit(self.fit.denoise, self.fit.sde, self.fit.x1[:n], self.fit.x0[:n])


def mixtures(sde: VPSDE) -> dict[str, ScoreModel]:
    """The problems with an exact score."""
    images = torch.from_numpy(load_digits().images / 8 - 1).reshape(-1, 64)
    generator = torch.Generator().manual_seed(3)
    places = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 2 - 1
    weights = torch.rand(24, generator=generator, dtype=torch.float64) + 0.2
    angle = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    radius = torch.where(torch.arange(40) % 2 == 0, 0.4, 0.9)
    rings = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    clouds = {
        f"cloud, {d}": GaussianMixture(
            size * torch.randn(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64), std=std, sde=sde
        )
        for d, n, size, std in ((3, 12, 0.7, 0.12), (8, 20, 0.4, 0.08), (24, 30, 0.9, 0.25))
    }
    return {
        "digits, narrow": GaussianMixture(images[512:900], std=0.12, sde=sde),
        "digits, wide": GaussianMixture(images[900:1300], std=0.25, sde=sde),
        "plane": GaussianMixture(places, std=0.05, weights=weights, sde=sde),
        "rings": GaussianMixture(rings, std=0.03, sde=sde),
        **clouds,
    }


def spectra(sde: VPSDE) -> dict[str, ScoreModel]:
    """Gaussians with falling variances."""
    f = torch.arange(1, 257, dtype=torch.float64)
    g2 = torch.arange(20, dtype=torch.float64) ** 2
    h2 = torch.arange(16, dtype=torch.float64) ** 2
    steep = 1 / (0.5 + h2[:, None] + h2) ** 1.2
    variances = {
        "spectrum, line": (f**-1.5, 0.3),
        "spectrum, flat": ((1 / (1 + g2[:, None] + g2) ** 0.75).flatten(), 0.25),
        "spectrum, steep": (torch.stack([steep, steep / 5, steep / 50]).flatten(), 0.3),
    }
    return {name: gaussian_spectrum(v * (mean / v.mean()), sde) for name, (v, mean) in variances.items()}


def large_mixtures(sde: VPSDE) -> dict[str, ScoreModel]:
    """The problems with hundreds of dimensions."""
    images = (2 * strokes(28) - 1).reshape(-1, 784)
    printed = (2 * letters(28, 300, seed=1).double() - 1).reshape(-1, 784)
    generator = torch.Generator().manual_seed(500)
    places = 0.5 * torch.randn(40, 500, generator=generator, dtype=torch.float64)
    return {
        "strokes, narrow": GaussianMixture(images[600:1000], std=0.1, sde=sde),
        "strokes, wide": GaussianMixture(images[1000:1400], std=0.25, sde=sde),
        "letters, wide": GaussianMixture(printed, std=0.15, sde=sde),
        "fields, narrow": GaussianMixture(fields(200, generator), std=0.08, sde=sde),
        "fields, wide": GaussianMixture(fields(200, generator), std=0.25, sde=sde),
        "cloud, 500": GaussianMixture(places, std=0.2, sde=sde),
    }


def fields(n: int, generator: torch.Generator) -> Tensor:
    """Random images of three channels with the spectrum of photographs: (n, 1200)."""
    f2 = torch.arange(20, dtype=torch.float64) ** 2
    amplitude = (1 / (1 + f2[:, None] + f2)).sqrt()
    fields = amplitude * torch.randn(n, 3, 20, 20, generator=generator, dtype=torch.float64)
    mixed = torch.stack([fields[:, 0], fields[:, 0] + 0.3 * fields[:, 1], fields[:, 0] + 0.3 * fields[:, 2]], 1)
    return 0.5 * mixed.flatten(1) / mixed.square().mean().sqrt()


def large_spectra(sde: VPSDE) -> dict[str, ScoreModel]:
    """Gaussians with the spectra of larger images."""
    out = {}
    for name, size, channels, power, mean in (
        ("28", 28, 1, 1.2, 0.25),
        ("32", 32, 3, 0.75, 0.3),
        ("40", 40, 1, 1.0, 0.2),
    ):
        f2 = torch.arange(size, dtype=torch.float64) ** 2
        v = (1 / (1 + f2[:, None] + f2) ** power).flatten().repeat(channels)
        out[f"spectrum, {name}"] = gaussian_spectrum(v * (mean / v.mean()), sde)
    f2 = torch.arange(24, dtype=torch.float64) ** 2
    v = 1 / (1.5 + f2[:, None] + f2)
    v = torch.stack([v, v / 4, v / 20]).flatten()  # luminance, and weaker colours
    faint = torch.arange(1, 2001, dtype=torch.float64) ** -1.2
    return {
        **out,
        "spectrum, equal": gaussian_spectrum(torch.full((600,), 0.3, dtype=torch.float64), sde),
        "spectrum, colour": gaussian_spectrum(v * (0.2 / v.mean()), sde),
        "spectrum, faint": gaussian_spectrum(faint * (0.015 / faint.mean()), sde),
    }


def training_problem(name: str, model: ScoreModel, n: int, held_out: int, network: bool = False) -> TrainingProblem:
    """Draw initial noise and compute its endpoints."""
    dtype = torch.float32 if network else torch.float64
    assert model.shape is not None
    x1 = model.sde.prior((n + held_out, *model.shape), seeds=range(_SEED, _SEED + n + held_out), dtype=dtype)
    x0, _ = converged(model, x1, steps=160 if network else 400)
    if network:
        kept = _settled(model, x1, x0)
        x1, x0, n = x1[kept], x0[kept], int(kept[:n].sum())
    call: Callable[..., Tensor] = lambda x, t, rows: torch.cat(  # noqa: E731
        [model.denoise(a, b) for a, b in zip(x.split(_BATCH), t.split(_BATCH), strict=True)]
    )
    return TrainingProblem(
        name, TableFit(call, model.sde, x1[:n], x0[:n]), TableFit(call, model.sde, x1[n:], x0[n:]), network
    )


def _settled(model: ScoreModel, x1: Tensor, x0: Tensor) -> Tensor:
    """Mask of samples that a good solver takes near their endpoint: those between two modes would decide all means."""
    grid = spaced(model.sde, "power-1.5", 10, 0.15)
    solver = ExponentialAdams(2, "data", "time", corrector=True)
    errors = rms(solve(model.sde.probability_flow(model), x1, solver=solver, grid=grid).x - x0)
    return errors < 3 * errors.median()


def exact_models(large: bool = False) -> dict[str, ScoreModel]:
    """The exact models by name: the small ones, or the large."""
    sde = VPSDE()
    return {**large_mixtures(sde), **large_spectra(sde)} if large else {**mixtures(sde), **spectra(sde)}


def exact_problems(
    large: bool = False, names: Sequence[str] | None = None, n: int | None = None
) -> list[TrainingProblem]:
    """The exact models with initial noise and endpoints, or those of some names, with n samples for each purpose."""
    out = []
    for name, model in exact_models(large).items():
        mixture = isinstance(model, GaussianMixture)
        count = n or ((64 if mixture else 24) if large else (192 if mixture else 48))
        if names is None or name in names:
            out.append(training_problem(name, model, count, count))
    return out


def training_set(networks: Sequence[str], large: bool = False) -> list[TrainingProblem]:
    """The small models, or the large, and the networks of some runs."""
    n = 40 if large else 48
    runs = [training_problem(Path(run).name, load(run).eval(), n, n, network=True) for run in networks]
    return [*exact_problems(large), *runs]


def error(fit: TableFit, solver: Solver, times: Tensor) -> float:
    """Mean error of a solver on a grid."""
    return float(fit.errors(run(solver, fit, times)).mean())


def base(one: TrainingProblem, steps: int) -> float:
    """The error of the best pair for one model."""
    return search(one.fit.sde, steps, partial(error, one.few), partial(error, one.fit), 1)[0].error


def judged(
    label: str,
    problems: Sequence[TrainingProblem],
    ends: Sequence[Tensor],
    bases: Sequence[float],
    units: Sequence[float],
    console: Console,
) -> float:
    """The objective at the endpoints of the held-out samples, printed with the error of every model over its base."""
    found = objective([one.held for one in problems], ends, units)
    each = [float(one.held.errors(x).mean()) / b for one, x, b in zip(problems, ends, bases, strict=True)]
    console.print(f"{label}: {found:.3f} from", " ".join(f"{v:.2f}" for v in each))
    return found
