"""2-D data sets from known distributions, small enough to inspect samples by eye.

Each law is drawn 20,000 times with a fixed seed (the test split with another), then shifted and
divided, both axes alike, so that the training split has mean 0 and root mean square 1 per
coordinate: about unit scale, with the aspect ratio kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sde_diffusion.data.dataset import Data

POINTS = 20_000

Draw = tuple[np.ndarray, np.ndarray | None]


def moons(rng: np.random.Generator) -> Draw:
    """Two interleaved half circles of radius 1, with Gaussian noise of standard deviation 0.08."""
    label = rng.integers(0, 2, POINTS)
    angle = np.pi * rng.random(POINTS)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    arc = np.where(label[:, None] == 0, arc, [1.0, 0.5] - arc)
    return arc + 0.08 * rng.standard_normal((POINTS, 2)), label


def rings(rng: np.random.Generator) -> Draw:
    """Three circles of radius 1, 2 and 3, equally likely, with noise of standard deviation 0.08."""
    label = rng.integers(0, 3, POINTS)
    angle = 2 * np.pi * rng.random(POINTS)
    circle = (label + 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return circle + 0.08 * rng.standard_normal((POINTS, 2)), label


def checkerboard(rng: np.random.Generator) -> Draw:
    """The black fields of a 4 x 4 board on [-2, 2]^2, uniformly: floors with an even sum."""
    column = rng.integers(-2, 2, POINTS)
    row = 2 * rng.integers(-1, 1, POINTS) + column % 2
    return np.stack([column, row], 1) + rng.random((POINTS, 2)), None


def swiss_roll(rng: np.random.Generator) -> Draw:
    """The spiral r = angle, angle uniform on [1.5 pi, 4.5 pi], with noise of deviation 0.3."""
    angle = 1.5 * np.pi * (1 + 2 * rng.random(POINTS))
    spiral = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return spiral + 0.3 * rng.standard_normal((POINTS, 2)), None


LAWS: dict[str, Callable[[np.random.Generator], Draw]] = {
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "swiss-roll": swiss_roll,
}


def load_toy(name: str, split: str) -> Data:
    """Return 20,000 points of a law in `LAWS`, the same at every call; `split` is train or test.

    >>> data = load_toy("rings", "train")
    >>> len(data), data.shape, data.classes
    (20000, (2,), 3)
    """
    law = LAWS[name]
    train, labels = law(np.random.default_rng(0))
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).mean())
    points = train
    if split == "test":
        points, labels = law(np.random.default_rng(1))
    x = torch.tensor(((points - centre) / scale).astype(np.float32))
    return Data(name, x, None if labels is None else torch.tensor(labels, dtype=torch.int64), "vector")
