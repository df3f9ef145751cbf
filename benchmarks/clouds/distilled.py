r"""One cloud of points that is a three from the front and a seven from the side, by score distillation.

    python -m benchmarks.clouds.distilled [--digits 3 7] [--steps 400] [--picture FILE] [--json FILE]

The score model is the bundled network of 8 x 8 digits with labels, guided; the loss of a view is score distillation of
its picture with its label. Only the points are optimised. Afterwards the bundled classifier reads both views and two
views between them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from sde_diffusion import Guided, load
from sde_diffusion.distillation import score_distillation
from sde_diffusion.evaluation.features.pretrained_classifier import Classifier
from sde_diffusion.points import render
from solvers.noise import standard_normal

matplotlib.use("Agg")
SCALE, BATCH, RATE = 20.0, 16, 0.02
TIMES = (0.05, 0.7)  # the range of t falls from its whole to its lower half
VIEW: dict[str, Any] = {"side": 8, "radius": 0.55, "density": 0.6, "extent": 1.2}


def distilled(digits: list[int], points: int, steps: int, seed: int = 0) -> Tensor:
    """The cloud (1, 3, points); view k is that at the angle k pi / 2."""
    model = Guided(load("bundled-labelled"), SCALE).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    cloud = (0.5 * torch.randn(1, 3, points, generator=g)).requires_grad_(True)
    optimizer = torch.optim.Adam([cloud], lr=RATE)
    for step in range(steps):
        share = step / steps
        high = TIMES[1] - share * (TIMES[1] - TIMES[0]) / 2
        loss = torch.zeros(())
        for k, digit in enumerate(digits):
            x = render(cloud, k * math.pi / 2, **VIEW).expand(BATCH, -1, -1, -1)
            t = TIMES[0] + (high - TIMES[0]) * torch.rand(BATCH, generator=g, dtype=torch.float64)
            eps = standard_normal(torch.arange(BATCH) + BATCH * (2 * step + k), (1, 8, 8), 1)
            label = torch.full((BATCH,), digit)
            loss = loss + score_distillation(model, x, t, eps, label=label).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return cloud.detach()


@torch.no_grad()
def views(cloud: Tensor, angles: list[float], side: int = 8) -> Tensor:
    """Pictures of the cloud from these angles."""
    fine = side > VIEW["side"]  # single points are seen
    how = {**VIEW, "side": side, "radius": 1.2 if fine else VIEW["radius"]}
    return torch.cat([render(cloud, angle, **how) for angle in angles])


def main() -> None:
    """Draw the cloud and read it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--digits", nargs=2, type=int, default=[3, 7])
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    angles = [k * math.pi / 6 for k in range(4)]
    rows, pictures = [], []
    for seed in range(asked.seeds):
        start = time.process_time()
        cloud = distilled(asked.digits, asked.points, asked.steps, seed)
        found = Classifier("digits")(views(cloud, angles)).probabilities
        assert found is not None
        front, side = float(found[0, asked.digits[0]]), float(found[3, asked.digits[1]])
        rows.append({"seed": seed, "front": front, "side": side, "seconds": time.process_time() - start})
        print(rows[-1], flush=True)
        pictures += [views(cloud, angles), views(cloud, angles, 64)]
    if asked.picture:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(2, 4, figsize=(8, 4.3))
        for axis, image in zip(axes.flat, [*pictures[0], *pictures[1]], strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
            axis.axis("off")
        for axis, angle in zip(axes[0], angles, strict=True):
            axis.set_title(f"{math.degrees(angle):.0f}°", fontsize=9)
        figure.tight_layout()
        figure.savefig(asked.picture, dpi=100)
    if asked.json:
        content = {"digits": asked.digits, "points": asked.points, "steps": asked.steps, "rows": rows}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
