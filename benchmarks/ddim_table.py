r"""Table 1 of the DDIM paper (Song, Meng & Ermon 2021) on our models: Frechet distance by eta and number of steps.

    python -m benchmarks.ddim_table [--run RUN] [--n 1000] [--steps 10,20,50,100,1000] [--data-dir DATA]

Rows are eta = 0 (DDIM), 0.2, 0.5, 1 (DDPM) and sigma-hat, the larger variance of DDPM: with S the standard deviation
at eta = 1, the step keeps sqrt(sigma_s^2 - S^2) eps and adds noise of sigma-hat^2 = 1 - alpha_t^2 / alpha_s^2 instead
of S^2 (their section 5 and appendix D.3). Columns are steps. Times are equal steps of sqrt(t) from 1 to 0.001, their
quadratic choice for CIFAR-10, and the last step to 0 returns the denoised x. Rows share their initial noise.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.data import load_data
from sde_diffusion.evaluation import FeatureSampler, SamplingSettings, quality
from sde_diffusion.evaluation.features import default_features, make_extractor
from sde_diffusion.evaluation.metrics import frechet_distance
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED_NAME, find_model, name_of
from sde_diffusion.storage.provenance import versions
from solvers import SOLVERS, Solver
from solvers.diffusion.ancestral import DDPM

RESULTS = Path(__file__).parent / "results"
LAST = 1e-3


ROWS: dict[str, tuple[Solver, float]] = {
    "0.0": (SOLVERS["ddim"], 0.0),
    "0.2": (SOLVERS["ddpm"], 0.2),
    "0.5": (SOLVERS["ddpm"], 0.5),
    "1.0": (SOLVERS["ddpm"], 1.0),
    "sigma-hat": (DDPM("large"), 1.0),
}


def times(steps: int) -> tuple[float, ...]:
    """The paper's quadratic choice: steps + 1 times.

    >>> [round(t, 3) for t in times(3)]
    [1.0, 0.266, 0.001, 0.0]
    """
    if steps == 1:
        return (1.0, 0.0)
    return (*(torch.linspace(1, math.sqrt(LAST), steps, dtype=torch.float64) ** 2).tolist(), 0.0)


def markdown(result: dict[str, Any]) -> str:
    """The table, with a distance and its standard error in each cell."""
    columns = [str(s) for s in result["steps"]]
    lines = [
        f"# DDIM's table on {result['model']}: Frechet distance to the training set",
        "",
        f"{result['n']:,} samples, features '{result['features']}', standard errors by half-samples;",
        f"real draws of this number are at {result['floor']:.3f}. `{result['command']}`",
        "",
        "| eta \\ steps | " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for name, row in result["rows"].items():
        cells = [f"{row[c]['value']:.3f} +- {row[c]['standard_error']:.3f}" for c in columns if c in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure row by row and write after each, so that an interrupted run keeps its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", default=BUNDLED_NAME)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", default="10,20,50,100,1000")
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="name without ending; benchmarks/results/ddim-table-DATA by default")
    arguments = parser.parse_args()
    stored = find_model(arguments.run)
    data = load_data(stored.data["name"], arguments.data_dir)
    extractor = make_extractor(default_features(data.shape), fit=lambda: data.batch(slice(0, 20_000)))
    reference = FeatureStatistics.of(data, extractor, device=arguments.device)
    generator = torch.Generator().manual_seed(0)
    real = reference.features[torch.randint(len(reference.features), (arguments.n,), generator=generator)]
    steps = [int(s) for s in arguments.steps.split(",")]
    out = arguments.out or RESULTS / f"ddim-table-{data.name}"
    result: dict[str, Any] = {
        "model": name_of(stored),
        "sha256": stored.sha256,
        "features": extractor.name,
        "reference": dict(reference.data),
        "n": arguments.n,
        "steps": steps,
        "floor": frechet_distance(real, reference.moments),
        "command": f"python -m benchmarks.ddim_table --run {name_of(stored)} --n {arguments.n}",
        "versions": versions(),
        "rows": {name: {} for name in ROWS},
    }
    sampler = FeatureSampler(load(stored, device=arguments.device), extractor)
    for count in steps:
        ways = [SamplingSettings(solver, grid=times(count), eta=eta) for solver, eta in ROWS.values()]
        points = quality(sampler, ways, arguments.n, reference, metrics=["frechet"])
        for name, point in zip(ROWS, points, strict=True):
            found = point.figures["frechet"]
            result["rows"][name][str(count)] = {
                "value": found.value,
                "standard_error": found.standard_error,
                "seconds": round(point.seconds, 1),
            }
        result["steps"] = steps[: steps.index(count) + 1]
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
