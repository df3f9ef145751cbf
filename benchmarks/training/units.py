"""Data in units of their own: mean and standard deviation of the samples of the default recipe.

    python -m benchmarks.training.units [--kinds vectors ct temperatures] [--steps N] [--runs DIR] [--json FILE]

Trains the default model with the default options on

- vectors        300 +- 10 in 240 dimensions, 4,000 samples
- ct             int16 images of 8 x 8, a level of 1000 +- 400 for each and +- 100 within, 600 samples
- temperatures   280 +- 15 in 3 dimensions, 2,000 samples

and draws 1,000 samples with the default solver. ``mean`` and ``std`` are over all values, relative to the data;
``entries`` is the smallest and largest ratio of the standard deviations of an entry. Runs in DIR are resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sde_diffusion import load, sample, train
from sde_diffusion.data import as_data
from sde_diffusion.training.defaults import default_model, default_options

N = 1000


def vectors(rng: np.random.Generator) -> Any:
    """300 +- 10 in 240 dimensions."""
    return (300 + 10 * rng.standard_normal((4000, 240))).astype("f4")


def ct(rng: np.random.Generator) -> Any:
    """Images of 16 bits, each with a level of its own."""
    return (1000 + 400 * rng.standard_normal((600, 1, 1, 1)) + 100 * rng.standard_normal((600, 1, 8, 8))).astype("i2")


def temperatures(rng: np.random.Generator) -> Any:
    """280 +- 15 in 3 dimensions."""
    return (280 + 15 * rng.standard_normal((2000, 3))).astype("f4")


KINDS = {"vectors": vectors, "ct": ct, "temperatures": temperatures}


def measure(kind: str, steps: int | None, runs: Path) -> dict[str, Any]:
    """Train on one kind of data, or resume, and compare samples and data."""
    data = as_data(KINDS[kind](np.random.default_rng(0)), name=kind)
    model, out = default_model(data), runs / kind
    options: dict[str, Any] = {
        **default_options(model.predicts, model.sde, model.shape or ()),
        "device": "cpu",
        "checkpoint_every": 100,
    }
    options |= {} if steps is None else {"steps": steps}
    train(model, data, out=out, resume=out.exists(), **options)
    x, real = (sample(load(out), N, seed=1).double().flatten(1), data.x.double().flatten(1))
    ratio = x.std(0) / real.std(0)
    return {
        "kind": kind,
        "steps": json.loads((out / "config.json").read_text())["train"]["steps"],
        "mean": float(x.mean() / real.mean()),
        "std": float(x.std() / real.std()),
        "entries": [float(ratio.min()), float(ratio.max())],
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=tuple(KINDS), choices=tuple(KINDS))
    parser.add_argument("--steps", type=int, help="number of training steps; the default otherwise")
    parser.add_argument("--runs", type=Path, default=Path("runs/units"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    table = Table("data", "steps", "mean", "std", "std of the entries")
    for kind in arguments.kinds:
        row = measure(kind, arguments.steps, arguments.runs)
        rows.append(row)
        low, high = row["entries"]
        table.add_row(kind, str(row["steps"]), f"{row['mean']:.4f}", f"{row['std']:.3f}", f"{low:.3f} to {high:.3f}")
        if arguments.json:
            arguments.json.write_text(json.dumps({"n": N, "rows": rows}, indent=1) + "\n")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
