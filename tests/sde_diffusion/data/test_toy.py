"""The sets of points obey the laws they are drawn from."""

import numpy as np
import pytest
import torch

from sde_diffusion.data import load_data
from sde_diffusion.data.toy import LAWS


@pytest.mark.parametrize("name", LAWS)
def test_every_set_has_unit_scale_and_a_test_split_of_the_same_law(name):
    train, test = (load_data(name, split=split).x.double() for split in ("train", "test"))
    assert len(train) == len(test) == 20_000
    assert train.mean(0).abs().max() < 1e-6
    assert train.square().mean().sqrt() == pytest.approx(1, abs=1e-6)
    # standard error of a mean of 20,000 unit values: 0.007; of a mean square: below 0.01
    assert test.mean(0).abs().max() < 4 * 0.0075 * 2**0.5
    assert test.square().mean() == pytest.approx(1, abs=4 * 0.01)
    assert not torch.equal(train, test)
    assert load_data(name).fingerprint == load_data(name).fingerprint


def raw(name):
    points, labels = LAWS[name](np.random.default_rng(5))
    return points, labels


def test_rings_have_radii_1_2_3():
    points, labels = raw("rings")
    radius = np.hypot(*points.T)
    for k in range(3):
        # a radius with noise 0.08 across has mean r + 0.08^2 / 2r and deviation 0.08
        mean = k + 1 + 0.0032 / (k + 1)
        assert radius[labels == k].mean() == pytest.approx(mean, abs=4 * 0.08 / 6_000**0.5)
        assert radius[labels == k].std() == pytest.approx(0.08, abs=4 * 0.08 / 12_000**0.5)
    assert np.bincount(labels) == pytest.approx(20_000 / 3, abs=4 * 67)


def test_moons_are_half_circles_around_two_centres():
    points, labels = raw("moons")
    for k, (centre, side) in enumerate((((0, 0), 1), ((1, 0.5), -1))):
        arm = points[labels == k] - centre
        assert np.hypot(*arm.T).mean() == pytest.approx(1.0032, abs=4 * 0.08 / 9_000**0.5)
        assert np.hypot(*arm.T).std() == pytest.approx(0.08, abs=4 * 0.08 / 18_000**0.5)
        assert (side * arm[:, 1] > -0.4).all()  # noise reaches below the diameter, by 5 deviations


def test_the_checkerboard_fills_eight_fields_evenly():
    points, labels = raw("checkerboard")
    fields, counts = np.unique(np.floor(points), axis=0, return_counts=True)
    expected = [(c, r) for c in range(-2, 2) for r in range(-2, 2) if (c + r) % 2 == 0]
    assert [tuple(field) for field in fields] == expected
    assert counts == pytest.approx(2_500, abs=4 * 47)
    assert labels is None


def test_the_swiss_roll_winds_once_and_a_half():
    points, _ = raw("swiss-roll")
    radius, angle = np.hypot(*points.T), np.arctan2(*points.T[::-1])
    turn = (radius - angle) / (2 * np.pi)
    off = 2 * np.pi * np.abs(turn - np.round(turn))  # distance to the nearest arm, along the radius
    assert off.mean() == pytest.approx(0.3 * (2 / np.pi) ** 0.5, rel=0.05)
    assert np.quantile(radius, [0.25, 0.75]) == pytest.approx([2.25 * np.pi, 3.75 * np.pi], rel=0.02)
