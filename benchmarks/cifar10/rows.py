"""The rows of the table: every solver at every NFE, and the best scheduler of diffusers on the same network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cifar10.settings import Settings
from sde_diffusion import ScoreModel, tune
from sde_diffusion.evaluation import FeatureSampler, SamplingSettings
from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.evaluation.metrics import Estimate, unbiased_frechet_distance
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import seeds_of
from solvers import Solver
from solvers.errors import InputError

PILOT_SEEDS = 2**20  # of the samples on which schedulers are chosen: none of those that are measured


class Row(NamedTuple):
    """A solver at a budget; the figure is None where it cannot run."""

    solver: str
    nfe: int
    frechet: Estimate | None
    seconds: float
    note: str = ""


def measured(features: Tensor, reference: FeatureStatistics) -> Estimate | None:
    """The squared Frechet distance; None where too few samples are finite."""
    if not bool(features.isfinite().all()) or len(features) < features.shape[1]:
        return None
    return unbiased_frechet_distance(features, reference.moments)


def ours(
    model: ScoreModel, extractor: Extractor, reference: FeatureStatistics, settings: Settings, seed: int = 0
) -> Iterator[Row]:
    """The rows of our solvers."""
    sampler = FeatureSampler(model, extractor)
    for nfe in settings.nfe:
        for name in settings.solvers:
            start = time.perf_counter()
            try:
                solver: str | Solver = name
                if name == "tuned":
                    solver = tune(model, nfe, minutes=settings.tuning_minutes)
                drawing = SamplingSettings(solver, nfe, seed=seed, batch_size=settings.sampling_batch, name=name)
                drawn = sampler.draw(drawing, settings.samples)
            except (InputError, FloatingPointError) as error:
                yield Row(name, nfe, None, 0.0, str(error).split(";")[0])
                continue
            yield Row(name, nfe, measured(drawn.features, reference), time.perf_counter() - start)


def theirs(
    model: ScoreModel, extractor: Extractor, reference: FeatureStatistics, settings: Settings, seed: int = 0
) -> Iterator[Row]:
    """The scheduler of diffusers with the smallest error to the reference solution on a pilot, at each NFE."""
    if find_spec("diffusers") is None:
        return
    from benchmarks.peers import Config, Task, peers

    assert model.shape is not None
    configs = peers(("diffusers",))[0][: settings.schedulers]
    x1 = noise_for(model, model.shape, seeds_of(seed + PILOT_SEEDS, settings.pilot))
    ends, _ = converged(model, x1, steps=200)

    def run(config: Config, x1: Tensor, nfe: int) -> Tensor | None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return config.run(Task(model, x1), nfe)
            except (ValueError, IndexError, ZeroDivisionError, NotImplementedError):
                return None

    for nfe in settings.nfe:
        start = time.perf_counter()
        errors: dict[str, float] = {}
        for config in configs:
            x0 = run(config, x1, nfe)
            if x0 is not None and bool(x0.isfinite().all()):
                errors[config.name] = float(rms(x0.double() - ends).mean())
        if not errors:
            yield Row("diffusers", nfe, None, 0.0, "no scheduler ran")
            continue
        best = min(errors, key=errors.__getitem__)
        config = next(c for c in configs if c.name == best)
        parts: list[Tensor] = []
        for first in range(0, settings.samples, settings.sampling_batch):
            size = min(settings.sampling_batch, settings.samples - first)
            x0 = run(config, noise_for(model, model.shape, seeds_of(seed, size, first)), nfe)
            assert x0 is not None
            parts.append(extractor(x0.float()).features.cpu())
        note = f"{best}, of {len(errors)}"
        yield Row("diffusers", nfe, measured(torch.cat(parts), reference), time.perf_counter() - start, note)


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown: a line for each solver and a column for each NFE."""
    budgets = sorted({row.nfe for row in rows})
    lines = ["| solver | " + " | ".join(f"{nfe} NFE" for nfe in budgets) + " |"]
    lines.append("| --- |" + " --- |" * len(budgets))
    for solver in dict.fromkeys(row.solver for row in rows):
        own: dict[int, Any] = {row.nfe: row.frechet for row in rows if row.solver == solver}
        cells = [f"{e.value:.3g} ± {e.standard_error:.1g}" if (e := own.get(nfe)) else "" for nfe in budgets]
        lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    notes = [f"diffusers at {row.nfe} NFE: {row.note}" for row in rows if row.solver == "diffusers"]
    return "\n".join([*lines, "", *[f"- {note}" for note in notes]]) + "\n"
