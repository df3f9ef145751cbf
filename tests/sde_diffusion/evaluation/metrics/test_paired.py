"""Differences of Frechet distances of paired samples: their intervals hold, and are shorter than unpaired ones."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.evaluation.metrics import Moments, frechet_difference, unbiased_frechet_distance

D = 4
UNIT = Moments(10**6, torch.zeros(D).double(), (10**6 - 1) * torch.eye(D).double())


def pairs(seed: int, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of N(0.3, 1) and of N(0.3, 1.1^2) with the same noise."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + 0.3, 1.1 * x + 0.3


def test_intervals_hold_the_difference_about_as_often_as_they_say() -> None:
    exact = -D * 0.1**2
    found = [frechet_difference(*pairs(seed), UNIT, draws=40) for seed in range(120)]
    held = sum(e.interval[0] <= exact <= e.interval[1] for e in found)
    assert 0.89 * 120 <= held <= 120
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    error = sum(e.standard_error for e in found) / 120
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(120)
    assert 0.8 < error / float(values.std()) < 1.4


def test_the_noise_that_both_share_cancels() -> None:
    a, b = pairs(0, 2000)
    found = frechet_difference(a, b, UNIT)
    one, other = (unbiased_frechet_distance(x, UNIT) for x in (a, b))
    assert found.value == pytest.approx(one.value - other.value)
    assert one.interval[1] > other.interval[0] and found.interval[1] < 0
    assert found.standard_error < 0.5 * math.hypot(one.standard_error, other.standard_error)
    mixed = frechet_difference(a, b[torch.randperm(2000, generator=torch.Generator().manual_seed(1))], UNIT)
    assert mixed.standard_error > 1.8 * found.standard_error


def test_sets_of_different_sizes_are_no_pairs() -> None:
    a, b = pairs(0)
    with pytest.raises(ValueError, match="got 400 and 399"):
        frechet_difference(a, b[1:], UNIT)
