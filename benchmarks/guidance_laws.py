r"""The law that each guidance method samples, beside the tilted law p(x) p(c | x)^w = p_c(x)^w p(x)^(1-w).

    python -m benchmarks.guidance_laws [--samples 2000] [--scale 2] [--out benchmarks/results]

Guidance does not sample the tilted law: the score of its noised version is not the sum of the noised scores. How far
off a method is depends on the solver, and both problems here have closed forms. The pair is p = N(0, I), p_c = N(1,
I/4) in 16 dimensions, of which mean and standard deviation of an entry are shown. The mixture has four modes in 2-D, of
which the class has two with the weights .8 and .2; shown are the weight of the first, and mean and standard deviation
of the first coordinate. The intervals are 95 % bootstrap intervals over samples.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import VPSDE, Gaussian, GaussianMixture, Guided, ScoreModel, sample
from sde_diffusion.guidance import GuidedPlusPlus, projected, rescaled

RESULTS = Path(__file__).parent / "results"
SDE = VPSDE()
MODES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
IN_CLASS = torch.tensor([0.8, 0.2]).double()
STD = 0.5
NONE = {"label": 0}
SOLVERS = {"pf-ode": 40, "dpm++2m-sde": 400}
RENOISED = {("ddim", 40), ("ddim", 200), ("ddpm", 200)}
LAMBDA = 0.6


def choice(free: ScoreModel, conditional: ScoreModel) -> ScoreModel:
    """The conditional model for label 1, the free one for label 0."""

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        rows = (label == 1).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(rows, conditional.denoise(x, t), free.denoise(x, t))

    return ScoreModel(network, SDE, "data", free.shape)


def pair() -> tuple[ScoreModel, ScoreModel]:
    """The model of both Gaussians, and a weaker one: both variances .2 larger."""

    def model(extra: float) -> ScoreModel:
        free = Gaussian(torch.zeros(16), torch.full((16,), 1.0 + extra), sde=SDE)
        return choice(free, Gaussian(torch.ones(16), torch.full((16,), 0.25 + extra), sde=SDE))

    return model(0.0), model(0.2)


def mixture() -> tuple[ScoreModel, ScoreModel]:
    """The model of the mixture and of its class, and a weaker one with wider modes."""

    def model(std: float) -> ScoreModel:
        return choice(GaussianMixture(MODES, std, sde=SDE), GaussianMixture(MODES[:2], std, IN_CLASS, sde=SDE))

    return model(STD), model(STD * 1.3)


def of_pair(x: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of an entry."""
    return {"mean": x.mean(), "std": x.std()}


def of_mixture(x: Tensor) -> dict[str, Tensor]:
    """The weight of the first mode, by the sign of the second coordinate, and moments of the first coordinate."""
    return {"weight": (x[:, 1] > 0).double().mean(), "mean": x[:, 0].mean(), "std": x[:, 0].std()}


def tilted_pair(w: float) -> dict[str, float]:
    """p_c^w p^(1 - w) is Gaussian: precisions and precision-weighted means add with these weights.

    >>> {name: round(value, 3) for name, value in tilted_pair(2.0).items()}
    {'mean': 1.143, 'std': 0.378}
    """
    precision = 4 * w + (1 - w)
    return {"mean": 4 * w / precision, "std": precision**-0.5}


def tilted_mixture(w: float) -> dict[str, float]:
    """By quadrature on a grid.

    >>> round(tilted_mixture(1.0)["weight"], 2)  # .8 plus what the broad modes leave on the other side
    0.79
    """
    u = torch.linspace(-6, 6, 800, dtype=torch.float64)  # no node lies on the axis between the modes
    x = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    zero = torch.zeros(len(x), dtype=torch.float64)
    free = GaussianMixture(MODES, STD, sde=SDE).log_prob(x, zero)
    conditional = GaussianMixture(MODES[:2], STD, IN_CLASS, sde=SDE).log_prob(x, zero)
    p = (w * conditional + (1 - w) * free).softmax(0)
    mean = float((p * x[:, 0]).sum())
    return {
        "weight": float((p * (x[:, 1] > 0)).sum()),
        "mean": mean,
        "std": math.sqrt(float((p * (x[:, 0] - mean) ** 2).sum())),
    }


def methods(model: ScoreModel, weak: ScoreModel, w: float) -> dict[str, ScoreModel]:
    """Every rule at one scale."""
    return {
        "classifier-free guidance": Guided(model, w, NONE),
        "with an interval, 0.3 < sigma / alpha <= 3": Guided(model, w, NONE, (0.3, 3.0)),
        "rescaled, phi = 0.7": Guided(model, null=NONE, combine=rescaled(w, 0.7), on="output"),
        "projected (APG)": Guided(model, null=NONE, combine=projected(w)),
        "autoguidance": Guided(model, w, guide=weak),
    }


def interval(statistic: Callable[[Tensor], dict[str, Tensor]], x: Tensor, draws: int = 200) -> dict[str, list[float]]:
    """95 % bootstrap intervals over samples, with the value in the middle."""
    generator = torch.Generator().manual_seed(0)
    found = [statistic(x[torch.randint(len(x), (len(x),), generator=generator)]) for _ in range(draws)]
    result = {}
    for name, value in statistic(x).items():
        ends = torch.stack([f[name] for f in found]).quantile(torch.tensor([0.025, 0.975], dtype=x.dtype))
        result[name] = [float(ends[0]), float(value), float(ends[1])]
    return result


def measure(samples: int, w: float) -> list[dict[str, Any]]:
    """One row for each problem, method and solver."""
    rows: list[dict[str, Any]] = []
    for problem, (model, weak), statistic, tilted in (
        ("Gaussian pair", pair(), of_pair, tilted_pair(w)),
        ("mixture of four", mixture(), of_mixture, tilted_mixture(w)),
    ):
        rows.append({"problem": problem, "method": "tilted law", "exact": tilted})
        runs = [
            (name, guided, solver, nfe)
            for name, guided in methods(model, weak, w).items()
            for solver, nfe in SOLVERS.items()
        ]
        runs.insert(0, ("conditional law, no guidance", model, "pf-ode", 20))
        plus = GuidedPlusPlus(model, LAMBDA, null=NONE)
        runs += [(f"CFG++, lambda = {LAMBDA}", plus, solver, nfe) for solver, nfe in sorted(RENOISED)]
        for name, guided, solver, nfe in runs:
            label = torch.ones(samples, dtype=torch.int64)
            x = sample(guided, samples, solver=solver, nfe=nfe, seed=1, batch_size=samples, label=label).double()
            rows.append({"problem": problem, "method": name, "solver": solver, "nfe": nfe, **interval(statistic, x)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, one table for each problem."""
    lines: list[str] = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        names = list(mine[0]["exact"])
        lines += [
            f"### {problem}",
            "",
            f"| method | solver | NFE | {' | '.join(names)} |",
            "| --- " * (3 + len(names)) + "|",
        ]
        for r in mine:
            exact = r.get("exact")
            cells = [f"{exact[n]:.3f}" if exact else f"{r[n][1]:.3f} ({r[n][0]:.3f} to {r[n][2]:.3f})" for n in names]
            lines.append(f"| {r['method']} | {r.get('solver', 'exact')} | {r.get('nfe', '')} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.guidance_laws", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.samples < 100 or not 0 <= options.scale < 100:
        parser.error(f"--samples from 100 up, --scale from 0 to 100; got {options.samples} and {options.scale}")
    torch.set_num_threads(1)
    rows = measure(options.samples, options.scale)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "guidance_laws.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = (
        "# What guidance samples\n\nMade by `python -m benchmarks.guidance_laws "
        f"--samples {options.samples} --scale {options.scale:g}`, beside the\ntilted law at w = {options.scale:g}.\n\n"
    )
    (options.out / "guidance_laws.md").write_text(head + table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
