"""Clouds lie on the surfaces that they are named after, uniformly."""

from __future__ import annotations

import numpy as np
import torch

from sde_diffusion.data import load_data
from sde_diffusion.data.clouds.shapes import chair, load_shapes, sphere, torus


def test_points_of_a_sphere_have_one_radius() -> None:
    for seed in range(5):
        radius = np.linalg.norm(sphere(np.random.default_rng(seed), 50), axis=1)
        assert radius.std() < 1e-12 and 0.6 <= radius[0] <= 1.1


def test_points_of_a_torus_satisfy_its_equation_and_are_uniform() -> None:
    r"""d^2 = r^2 - R^2 + 2 R \rho; on a uniform torus E cos v = r / (2 R)."""
    for seed in range(5):
        x = torus(np.random.default_rng(seed), 20_000)
        rho = np.hypot(x[:, 0], x[:, 1])
        slope, offset = np.polyfit(rho, (x**2).sum(1), 1)
        large, small = slope / 2, np.sqrt(offset + slope**2 / 4)
        assert np.abs((x**2).sum(1) - offset - slope * rho).max() < 1e-9
        assert 0.6 <= large <= 0.9 and 0.15 <= small <= 0.35
        cosine = (rho - large) / small
        assert abs(cosine.mean() - small / (2 * large)) < 4 * cosine.std() / np.sqrt(20_000)


def test_a_chair_has_seat_back_and_legs_in_proportion_to_their_area() -> None:
    n, t = 20_000, 0.05
    half, deep, tall, legs = (lambda rng: [*rng.uniform(0.4, 0.6, 2), rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8)])(
        np.random.default_rng(0)
    )
    z = chair(np.random.default_rng(0), n)[:, 2]
    end, long = (2 * t) ** 2, 4 * 2 * t * (legs - t)  # of a leg: one end, the four sides
    seat = 2 * (4 * half * deep + 2 * half * 2 * t + 2 * deep * 2 * t)
    back = 2 * (2 * half * 2 * t + 2 * half * (tall - t) + 2 * t * (tall - t))
    total = 4 * (long + 2 * end) + seat + back
    shares = {"below": 4 * (long + end) / total, "above": (back - 2 * half * 2 * t) / total}
    for part, expected in shares.items():
        found = (z < -t - 1e-9).mean() if part == "below" else (z > t + 1e-9).mean()
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n), part


def test_a_set_is_the_same_at_every_call_and_splits_differ() -> None:
    data = load_data("shapes", split="test")
    assert data.fingerprint == load_shapes("test").fingerprint
    assert data.labels is not None and data.classes == 3
    assert not torch.equal(data.x[0], load_shapes("train").x[0])
    scale = float(data.x.square().mean().sqrt())
    assert 0.3 < scale < 1
