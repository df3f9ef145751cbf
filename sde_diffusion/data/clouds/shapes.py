r"""Clouds of points on spheres, tori and chairs, (3, N): coordinates x, y, z of N points.

    sphere   radius in [0.6, 1.1]
    torus    around the vertical axis, radii R in [0.6, 0.9] and r in [0.15, 0.35]; the angle of the tube has a density
             proportional to R + r cos v, so that points are uniform on the surface
    chair    boxes for seat, back and four legs, of random sizes, turned about the vertical axis by any angle

Points are independent and uniform on the surface, so the order of the points has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sde_diffusion.data.dataset import Data

POINTS = 128
COUNTS = {"train": 6_000, "test": 900}
Draw = Callable[[np.random.Generator, int], np.ndarray]


def sphere(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return points (n, 3) on a sphere of random radius."""
    x = rng.standard_normal((n, 3))
    return rng.uniform(0.6, 1.1) * x / np.linalg.norm(x, axis=1, keepdims=True)


def torus(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return points (n, 3) on a torus of random radii."""
    large, small = rng.uniform(0.6, 0.9), rng.uniform(0.15, 0.35)
    u = rng.uniform(0, 2 * np.pi, n)
    v = np.empty(0)
    while len(v) < n:  # by rejection: at most (R + r) / R = 1.6 draws for each
        angle = rng.uniform(0, 2 * np.pi, 2 * n)
        v = np.append(v, angle[rng.uniform(0, large + small, 2 * n) < large + small * np.cos(angle)])
    ring = large + small * np.cos(v[:n])
    return np.stack([ring * np.cos(u), ring * np.sin(u), small * np.sin(v[:n])], 1)


def chair(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return points (n, 3) on the boxes of a chair of random sizes, turned by a random angle."""
    half, deep = rng.uniform(0.4, 0.6, 2)
    tall, legs, thick = rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8), 0.05
    boxes = [([-half, -deep, -thick], [half, deep, thick]), ([-half, deep - 2 * thick, thick], [half, deep, tall])]
    for x in (-half, half - 2 * thick):
        for y in (-deep, deep - 2 * thick):
            boxes.append(([x, y, -legs], [x + 2 * thick, y + 2 * thick, -thick]))
    corner, size = np.array([b[0] for b in boxes]), np.array([np.subtract(b[1], b[0]) for b in boxes])
    faces = np.stack([np.delete(size, axis, 1).prod(1) for axis in range(3)], 1).repeat(2, 1)  # (boxes, 6)
    face = rng.choice(faces.size, n, p=faces.ravel() / faces.sum())
    box, side = face // 6, face % 6
    place = rng.random((n, 3))
    place[np.arange(n), side // 2] = side % 2
    x = corner[box] + place * size[box]
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return x @ rotation.T


SHAPES: dict[str, Draw] = {"sphere": sphere, "torus": torus, "chair": chair}


def load_shapes(split: str, points: int = POINTS) -> Data:
    """Return 6,000 clouds, or 900 for tests, in equal parts of each shape, the same at every call.

    >>> data = load_shapes("test")
    >>> data.shape, data.class_names, data.labels.bincount().tolist()
    ((3, 128), ('sphere', 'torus', 'chair'), [300, 300, 300])
    """
    rng = np.random.default_rng([7, split == "test"])
    labels = np.arange(COUNTS[split]) % len(SHAPES)
    draws = list(SHAPES.values())
    clouds = np.stack([draws[label](rng, points).T for label in labels]).astype(np.float32)
    return Data("shapes", torch.tensor(clouds), torch.tensor(labels), "signal", class_names=tuple(SHAPES))
