"""The default recipe sends no sample far away, and a predicted noise does."""

from __future__ import annotations

import pytest

from benchmarks.training.outliers import measure, sliced
from sde_diffusion.data import load_data

N = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "moons"])
def test_no_sample_of_the_default_recipe_is_far_from_the_data(name: str) -> None:
    found = measure(name, "velocity", seed=0, n=N, nfe=20, steps=600, sde="vp", points=0)
    assert found["beyond"] == 0 and found["largest"] < 6
    assert found["sliced"] < 0.1


@pytest.mark.slow
def test_a_predicted_noise_sends_some_far_away() -> None:
    found = measure("normal", "noise", seed=0, n=N, nfe=20, steps=500, sde="vp", points=0)
    assert found["beyond"] > 5 and found["largest"] > 20


def test_the_sliced_distance_of_a_shift_is_its_mean_along_the_lines() -> None:
    x = load_data("moons").x[:500]
    assert sliced(x, x) == 0
    assert sliced(x + 2.0, x) == pytest.approx((4 / 2 * 2) ** 0.5, rel=1e-3)  # E (2 cos + 2 sin)^2 = 4
