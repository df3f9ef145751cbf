"""Distance of the farthest samples, by parametrization.

    python -m benchmarks.training.outliers [--sets NAME ...] [--recipes NAME ...] [--seeds 0 1 2] [--json FILE]

A recipe is a parametrization with its default loss weight and time sampling; noise:log-normal has another sampling.

Trains the default network on points in 2-D and draws n samples with the default solver. If alpha(1) is small,
x_0 = (x - sigma eps) / alpha turns a small error of a predicted noise into a large one of x_0: samples far
from all data. By set and parametrization, over all seeds:

- beyond    samples farther than 8 from the origin (the sets have unit scale: their farthest points lie within 5)
- largest   the largest distance from the origin
- sliced    sliced 2-Wasserstein distance to the test split, median over seeds
- nats      log likelihood of the first test points by the probability flow, mean over points, median over seeds
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sde_diffusion import ScoreModel, log_likelihood, sample, train
from sde_diffusion.data import Data, as_data, load_data
from sde_diffusion.data.toy import LAWS
from sde_diffusion.training.defaults import default_model, default_options

FAR = 8.0
NORMAL = "normal"
SETS = (NORMAL, *LAWS)


def load(name: str, split: str) -> Data:
    """A set of points by name; ``normal`` is N(0, I) in 2-D, 20,000 draws."""
    if name != NORMAL:
        return load_data(name, labels=False, split=split)
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    return as_data(torch.randn(20_000, 2, generator=generator), name=NORMAL)


def trained(data: Data, recipe: str, seed: int, steps: int | None = None, sde: str = "vp") -> ScoreModel:
    """The model that ``sdediff train`` makes for a data set, with the given changes."""
    predicts, _, times = recipe.partition(":")
    model = default_model(data, sde=sde, predicts=predicts, seed=seed)
    options: dict[str, Any] = {
        **default_options(model.predicts, model.sde, model.shape or ()),
        "seed": seed,
        "device": "cpu",
    }
    options |= {"time_sampling": times} if times else {}
    options |= {"steps": steps} if steps is not None else {}
    return train(model, data, progress=False, **options)


def sliced(a: Tensor, b: Tensor, lines: int = 128) -> float:
    """Sliced 2-Wasserstein distance of two sets of the same size."""
    angle = torch.arange(lines, dtype=torch.float64) * torch.pi / lines
    along = torch.stack([angle.cos(), angle.sin()])
    gaps = (a.double() @ along).sort(0).values - (b.double() @ along).sort(0).values
    return float(gaps.square().mean().sqrt())


def measure(
    name: str, recipe: str, seed: int, n: int, nfe: int, steps: int | None, sde: str, points: int
) -> dict[str, Any]:
    """Train one model and measure its samples."""
    test = load(name, "test")
    start = time.perf_counter()
    model = trained(load(name, "train"), recipe, seed, steps, sde)
    seconds = time.perf_counter() - start
    x = sample(model, n, nfe=nfe, seed=seed, batch_size=2000)
    radius = x.double().norm(dim=1)
    nats = None
    if points:
        nats = float(log_likelihood(model, test.x[:points], trace="exact", tolerance=1e-4).nats.mean())
    return {
        "set": name,
        "recipe": recipe,
        "seed": seed,
        "beyond": int((radius > FAR).sum()),
        "largest": float(radius.max()),
        "sliced": sliced(x, test.x[:n].repeat(-(-n // len(test)), 1)[:n]),
        "nats": nats,
        "train_seconds": round(seconds, 1),
    }


def summary(rows: list[dict[str, Any]]) -> Table:
    """One line for each data set and parametrization."""
    table = Table("set", "recipe", "seeds", "beyond", "largest", "sliced", "nats")
    for name, recipe in dict.fromkeys((row["set"], row["recipe"]) for row in rows):
        some = [row for row in rows if (row["set"], row["recipe"]) == (name, recipe)]
        table.add_row(
            name,
            recipe,
            str(len(some)),
            str(sum(row["beyond"] for row in some)),
            f"{max(row['largest'] for row in some):.2f}",
            f"{median(row['sliced'] for row in some):.4f}",
            "" if some[0]["nats"] is None else f"{median(row['nats'] for row in some):.3f}",
        )
    return table


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--recipes", nargs="+", default=("noise", "velocity"))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--sde", default="vp")
    parser.add_argument("--n", type=int, default=20_000, help="number of samples for each seed")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--steps", type=int, help="number of training steps; the default otherwise")
    parser.add_argument("--points", type=int, default=200, help="number of test points for the likelihood; 0 for none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    how = {
        "n": arguments.n,
        "nfe": arguments.nfe,
        "steps": arguments.steps,
        "sde": arguments.sde,
        "points": arguments.points,
    }
    rows = []
    for seed in arguments.seeds:
        for name in arguments.sets:
            for recipe in arguments.recipes:
                rows.append(measure(name, recipe, seed, **how))
                print(rows[-1], flush=True)
                if arguments.json:  # after every row, since all rows take an hour
                    arguments.json.write_text(json.dumps({**how, "rows": rows}, indent=1) + "\n")
    Console(width=100).print(summary(rows))


if __name__ == "__main__":
    main()
