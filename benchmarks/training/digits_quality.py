"""Are the samples of a digits model digits? A classifier, class shares and distances to the training set.

    python -m benchmarks.training.digits_quality [RUN] [--n 1000] [--solver pf-ode] [--nfe 20] [--json FILE]

Prints the same metrics for held-out real digits, which are not in the training data of the model or the classifier:

- sure      share of images on which the classifier gives its most probable class more than 0.9
- classes   smallest and largest share of a class among the classifier's most probable classes
- nearest   distance to the nearest training image (root mean square over pixels in [-1, 1]): the median, the
            1st percentile, and the smallest. A model that copies its training set has zeros here.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from sde_diffusion import sample
from sde_diffusion.data import load_data
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED


def classifier(x: np.ndarray, labels: np.ndarray) -> MLPClassifier:
    """A two-layer perceptron on the pixels of the training digits."""
    model = MLPClassifier((128, 64), alpha=1e-2, max_iter=200, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)


def nearest(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Root-mean-square distance of each image to its nearest training image."""
    square = (x**2).sum(1)[:, None] + (train**2).sum(1) - 2 * x @ train.T
    return np.sqrt(np.maximum(square.min(1), 0) / x.shape[1])


def figures(x: np.ndarray, train: np.ndarray, model: MLPClassifier) -> dict[str, float]:
    """All metrics of one set of images."""
    p = model.predict_proba(x)
    shares = np.bincount(p.argmax(1), minlength=10) / len(x)
    near = nearest(x, train)
    return {
        "images": len(x),
        "sure": float((p.max(1) > 0.9).mean()),
        "smallest_class": float(shares.min()),
        "largest_class": float(shares.max()),
        "nearest_median": float(np.median(near)),
        "nearest_1_percent": float(np.quantile(near, 0.01)),
        "nearest_smallest": float(near.min()),
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?", help="run or checkpoint; the bundled one by default")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--solver", default="pf-ode")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    train, held_out = (load_data("digits", split=split) for split in ("train", "test"))
    flat = {
        d.name + s: d.batch(torch.arange(len(d))).flatten(1).numpy() for s, d in (("", train), (" held out", held_out))
    }
    real, test = flat.values()
    judge = classifier(real, train.labels.numpy())
    model = load(arguments.run or BUNDLED)
    x = sample(model, arguments.n, solver=arguments.solver, nfe=arguments.nfe, seed=arguments.seed)
    rows = {
        f"{arguments.solver}, {arguments.nfe} NFE": figures(x.flatten(1).numpy(), real, judge),
        "held-out real digits": figures(test, real, judge),
    }
    table = Table("", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=150).print(table)
    print(f"classifier: accuracy {judge.score(test, held_out.labels.numpy()):.3f} on held-out digits")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
