r"""The bias of the methods for linear observations, on mixtures whose posterior is exact.

    python -m benchmarks.posterior [--samples 2000] [--solvers dpm++2m-sde pf-ode ...] [--out benchmarks/results]

Three mixtures of Gaussians are observed through one coordinate or a blurred sum, with noise. For each method and solver
the table has the largest error of a mode's weight, the error of the posterior mean in units of the posterior's standard
deviation, and the ratio of the standard deviations, with the standard error of the weight for exact samples: an error
of less than about 3 standard errors is not distinguishable from exact. The last rows are twisted particles.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture, sample
from sde_diffusion.guidance import METHODS, Mask, Matrix, Operator, twisted_particles
from sde_diffusion.models.full_covariance import FullCovarianceMixture

RESULTS = Path(__file__).parent / "results"
COLLAPSED = 1e3  # ratio of standard deviations above which a coordinate has no spread
SOLVERS = {"dpm++2m-sde": 100, "sde": 100, "euler-maruyama": 400, "pf-ode": 20, "unipc": 50}


def problems() -> Iterator[tuple[str, GaussianMixture, Operator, Tensor, float]]:
    """Name, prior, A, y and noise."""
    sde = VPSDE()
    three = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.3, 1.2]]).double()
    yield (
        "3 modes, first coordinate",
        GaussianMixture(three, std=0.3, sde=sde),
        Mask(torch.tensor([True, False])),
        torch.tensor([[0.4, 0.0]]).double(),
        0.5,
    )
    angle = torch.arange(8) * math.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], 1).double()
    yield (
        "8 modes on a ring, sum",
        GaussianMixture(ring, std=0.15, sde=sde),
        Matrix(torch.tensor([[0.6, 0.8]]).double()),
        torch.tensor([[0.5]]).double(),
        0.3,
    )
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(4, 6, generator=generator).double()
    yield (
        "4 modes in 6-d, 2 averages",
        GaussianMixture(wide, std=0.4, sde=sde),
        Matrix(torch.randn(2, 6, generator=generator).double() / 2),
        torch.tensor([[0.3, -0.2]]).double(),
        0.3,
    )


def figures(exact: FullCovarianceMixture, x: Tensor, weights: Tensor) -> dict[str, float]:
    """The errors of weighted samples (n, D) against the exact posterior."""
    error = x[:, None] - exact.means
    inverse = torch.linalg.inv(exact.covariance)
    square = torch.einsum("bki,ij,bkj->bk", error, inverse, error)
    share = (weights[:, None] * (exact.weights.log() - square / 2).softmax(1)).sum(0)
    mean = (exact.weights[:, None] * exact.means).sum(0)
    spread = exact.covariance + torch.einsum("k,ki,kj->ij", exact.weights, exact.means - mean, exact.means - mean)
    own_mean = (weights[:, None] * x).sum(0)
    own_spread = (weights[:, None] * (x - own_mean) ** 2).sum(0)
    std = spread.diagonal().sqrt()
    return {
        "weight": float((share - exact.weights).abs().max()),
        "mean": float(((own_mean - mean) / std).abs().max()),
        "std": float((own_spread.sqrt() / std).log().abs().max().exp()),
    }


def measure(samples: int, solvers: dict[str, int]) -> list[dict[str, Any]]:
    """One row for each problem, method and solver."""
    rows: list[dict[str, Any]] = []
    for name, prior, operator, y, noise in problems():
        exact = prior.posterior(operator, y, noise)
        largest = float((exact.weights * (1 - exact.weights)).max())
        entry = {"problem": name, "weights": exact.weights.tolist(), "standard_error": math.sqrt(largest / samples)}
        models: dict[str, Any] = {"exact posterior": exact}
        models |= {method: kind(prior, operator, y, noise) for method, kind in METHODS.items()}
        equal = torch.full((samples,), 1 / samples, dtype=torch.float64)
        for method, model in models.items():
            for solver, nfe in solvers.items():
                x = sample(model, samples, solver=solver, nfe=nfe, seed=1).double()
                rows.append({**entry, "method": method, "solver": solver, "nfe": nfe, **figures(exact, x, equal)})
        for particles in (16, 256, 2048):
            repeats = [
                figures(exact, found.x.double(), found.weights)
                for found in (
                    twisted_particles(prior, operator, y, noise, particles, steps=100, seed=k) for k in range(4)
                )
            ]
            mean = {key: sum(r[key] for r in repeats) / len(repeats) for key in repeats[0]}
            rows.append(
                {**entry, "method": f"twisted, {particles} particles", "solver": "ancestral", "nfe": 100, **mean}
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, one table for each problem."""
    lines: list[str] = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        weights = ", ".join(f"{w:.3f}" for w in mine[0]["weights"])
        lines += [
            f"### {problem}",
            "",
            f"Exact weights {weights}; standard error of a weight {mine[0]['standard_error']:.3f}.",
            "",
            "| method | solver | NFE | weight error | mean error / std | std ratio |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for r in mine:
            spread = f"{r['std']:.3f}" if r["std"] < COLLAPSED else "no spread"
            lines.append(
                f"| {r['method']} | {r['solver']} | {r['nfe']} | {r['weight']:.3f} | {r['mean']:.3f} | {spread} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.posterior", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.samples < 100:
        parser.error(f"--samples: a weight needs at least 100; got {options.samples}")
    torch.set_num_threads(1)
    rows = measure(options.samples, {name: SOLVERS[name] for name in options.solvers})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "posterior.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = "# Bias of methods for linear observations\n\nMade by `python -m benchmarks.posterior`.\n\n" + table(rows)
    (options.out / "posterior.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
