r"""Generated clouds against the data's own split.

    sdediff train --data shapes --network points --labels --batch-size 32 --lr 3e-3 --steps 600 --ema 0.99 \
        --out runs/shapes
    python -m benchmarks.clouds runs/shapes [--json FILE] [--picture FILE]

The reference are 150 clouds of the test split, 50 of each shape. The first row is the other clouds of the test split,
so it has the values of a perfect model; the rows below are samples with as many labels of each shape, with the number
of points of training and with others. Clouds of N points are compared with reference clouds of N points.

- matching  mean over reference clouds of the Chamfer distance to the nearest generated one, times 1,000
- coverage  share of reference clouds that are the nearest of some generated one
- 1-NN      leave-one-out accuracy of the nearest-neighbour classifier of both sets; 0.5 is best
- label     share of clouds whose nearest cloud of training has the shape that was asked for
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from benchmarks.report import run_parser, write_results
from sde_diffusion import ScoreModel, load, sample
from sde_diffusion.data.clouds.shapes import SHAPES, load_shapes
from sde_diffusion.points import chamfer, score_clouds

matplotlib.use("Agg")
CLOUDS = 150
POINTS = (128, 64)


def row(name: str, x: Tensor, reference: Tensor, labels: Tensor) -> dict[str, Any]:
    """A row of the table."""
    start = time.process_time()
    scores = score_clouds(x, reference)
    train = load_shapes("train")
    assert train.labels is not None
    nearest = chamfer(x, train.x[:CLOUDS]).argmin(1)
    return {
        "clouds": name,
        "points": x.shape[2],
        "matching": 1000 * scores.matching,
        "coverage": scores.coverage,
        "accuracy": scores.accuracy,
        "error": scores.error,
        "label": float((train.labels[:CLOUDS][nearest] == labels).double().mean()),
        "seconds": time.process_time() - start,
    }


def drawn(model: ScoreModel, points: int, nfe: int) -> Tensor:
    """Clouds of every shape in turn."""
    labels = torch.arange(CLOUDS) % len(SHAPES)
    return sample(model, CLOUDS, nfe=nfe, shape=(3, points), label=labels, batch_size=100, progress=False)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| clouds | points | matching | coverage | 1-NN | label |", "| --- " * 6 + "|"]
    for r in rows:
        lines.append(
            f"| {r['clouds']} | {r['points']} | {r['matching']:.1f} | {r['coverage']:.3f} | "
            f"{r['accuracy']:.3f} ± {r['error']:.3f} | {r['label']:.3f} |"
        )
    return "\n".join(lines)


def picture(rows: dict[str, Tensor], path: Path) -> None:
    """The first clouds of each row, seen from the side and a little from above."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 2.1 * len(rows)))
    for i, (name, clouds) in enumerate(rows.items()):
        for j in range(6):
            axis = figure.add_subplot(len(rows), 6, 6 * i + j + 1, projection="3d")
            x, y, z = clouds[j].tolist()
            axis.scatter(x, y, z, s=200 / clouds.shape[2] ** 0.9, c=z, cmap="viridis")
            axis.set_box_aspect((1, 1, 1))
            for limit in (axis.set_xlim, axis.set_ylim, axis.set_zlim):
                limit(-0.9, 0.9)
            axis.view_init(elev=20, azim=35)
            axis.set_axis_off()
            if j == 0:
                axis.set_title(name, fontsize=9, loc="left")
    figure.subplots_adjust(0, 0, 1, 0.95, 0, 0.05)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run the comparison."""
    parser = run_parser(__doc__)
    parser.add_argument("--nfe", type=int, default=30)
    asked = parser.parse_args()
    model = load(asked.run)
    labels = torch.arange(CLOUDS) % len(SHAPES)
    rows, shown = [], {}
    for points in POINTS:
        test = load_shapes("test", points).x
        reference = test[:CLOUDS]
        own = row("test split", test[CLOUDS : 2 * CLOUDS], reference, labels)
        x = drawn(model, points, asked.nfe)
        rows += [own, row("samples", x, reference, labels)]
        print(table(rows[-2:]), flush=True)
        shown |= {f"data, {points} points": reference} if points == POINTS[0] else {}
        shown[f"samples, {points} points"] = x
    write_results(asked, table(rows), rows=rows)
    if asked.picture:
        picture(shown, asked.picture)


if __name__ == "__main__":
    main()
