"""Digits by parametrization: quality, likelihood, and errors of the default solver, after the same training.

    python -m benchmarks.training.digits_recipes [--recipes velocity noise] [--steps 1000] [--runs DIR] [--json FILE]

Trains the default network on the bundled digits with each recipe (as in ``benchmarks.training.outliers``); runs in DIR
are resumed, and recipes that FILE has already are kept. For each:

- sure, nearest  as in ``benchmarks.training.digits_quality``, 1,000 samples with 20 NFE
- nats           log likelihood of 64 held-out dequantised digits, exact but for one Rademacher probe each, the same
                 for all; with the standard error of the mean, and the standard error of the difference from the first
- frechet        distance of 1,000 samples to the training digits, features of the bundled classifier, by NFE
- error          root mean square distance of 32 samples to the reference solution of their model, by NFE
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.training.digits_quality import classifier, figures
from sde_diffusion import FeatureStatistics, ScoreModel, evaluate, load, log_likelihood, sample, train
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.likelihood.report import likelihood_data
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.training.defaults import default_model, default_options
from solvers import solve
from solvers.classical.adams import Adams

NFE = (5, 8, 10, 20)
N, PAIRED, POINTS = 1000, 32, 64


def trained(recipe: str, folder: Path, steps: int) -> ScoreModel:
    """The model of a run, which is trained where it is not finished."""
    data = load_data("digits", labels=False)
    model = default_model(data, predicts=recipe)
    options: dict[str, Any] = {**default_options(recipe, model.sde, model.shape or ()), "steps": steps, "device": "cpu"}
    found = folder / recipe
    train(model, data, out=found, resume=found.exists(), checkpoint_every=100, **options)
    return load(found)


def errors(model: ScoreModel) -> dict[str, float]:
    """By NFE, the distance of the default solver's samples to the reference solution."""
    x1 = model.sde.prior((PAIRED, 1, 8, 8), seeds=range(PAIRED))
    end, _ = converged(model, x1, steps=200, dtype=torch.float32, checked=2)
    process = model.sde.probability_flow(model)
    found = {}
    for nfe in NFE:
        gap = solve(process, x1, nfe=nfe).x.double() - end
        found[str(nfe)] = float(gap.flatten(1).square().mean(1).sqrt().mean())
    return found


def measure(model: ScoreModel) -> dict[str, Any]:
    """All figures of a model."""
    digits, held_out = load_data("digits"), load_data("digits", split="test")
    real = digits.batch(slice(None)).flatten(1).numpy()
    judge = classifier(real, digits.labels.numpy())  # type: ignore[union-attr]
    x, _ = likelihood_data(held_out, POINTS, seed=0)
    nats = log_likelihood(model, x, solver=Adams(), steps=60, trace="hutchinson", n_probes=1).nats
    reference = FeatureStatistics.of(digits, make_extractor("digits"))
    frechet = {}
    for nfe in NFE:
        made = sample(model, N, nfe=nfe, seed=0)
        found = evaluate(made, reference, metrics=["frechet"])["frechet"]
        frechet[str(nfe)] = {"value": found.value, "interval": list(found.interval)}
    return {
        "quality": figures(made.flatten(1).numpy(), real, judge),
        "nats": nats.tolist(),
        "frechet": frechet,
        "error": errors(model),
    }


def tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    """Quality and likelihood, and the figures by NFE."""
    one = Table("recipe", "sure", "classes", "nearest, median", "nearest, 1 %", "nats", "nats - first")
    two = Table("recipe", *(f"frechet, {nfe}" for nfe in NFE), *(f"error, {nfe}" for nfe in NFE))
    first = torch.tensor(next(iter(found.values()))["nats"])
    for recipe, row in found.items():
        q, nats = row["quality"], torch.tensor(row["nats"])
        gap = nats - first
        root = math.sqrt(len(nats))
        one.add_row(
            recipe,
            f"{q['sure']:.3f}",
            f"{q['smallest_class']:.3f} to {q['largest_class']:.3f}",
            f"{q['nearest_median']:.3f}",
            f"{q['nearest_1_percent']:.3f}",
            f"{nats.mean():.2f} +- {nats.std() / root:.2f}",
            f"{gap.mean():+.2f} +- {gap.std() / root:.2f}",
        )
        distances = [row["frechet"][str(nfe)] for nfe in NFE]
        shown = [f"{d['value']:.2f} ({d['interval'][0]:.2f} to {d['interval'][1]:.2f})" for d in distances]
        two.add_row(recipe, *shown, *(f"{row['error'][str(nfe)]:.4f}" for nfe in NFE))
    return [one, two]


def main() -> None:
    """Train, measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=("velocity", "noise"), choices=("velocity", "noise", "edm"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-recipes"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of few samples
    found: dict[str, dict[str, Any]] = {}
    content = {"n": N, "paired": PAIRED, "points": POINTS, "steps": arguments.steps, "recipes": found}
    if arguments.json and arguments.json.is_file():
        before = json.loads(arguments.json.read_text())
        if {**before, "recipes": None} == {**content, "recipes": None}:
            found |= before["recipes"]
    for recipe in arguments.recipes:
        if recipe in found:
            continue
        found[recipe] = measure(trained(recipe, arguments.runs, arguments.steps))
        if arguments.json:
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    for table in tables(found):
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
