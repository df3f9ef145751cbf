"""Each metric against sums over pairs, closed forms or its published limits, and each standard error against spread."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from sde_diffusion.evaluation.metrics import (
    METRICS,
    Estimate,
    Moments,
    Sets,
    frechet_distance,
    inception_score,
    kid,
    measure,
    neighbours,
    p_value,
    sliced_wasserstein,
    squared_mmd,
    standard_error,
    two_sample_accuracy,
    unbiased_frechet_distance,
)
from sde_diffusion.evaluation.metrics.mmd import gaussian_kernel


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kid_is_its_sum_over_pairs() -> None:
    x, y = normal(7, 3), normal(5, 3, seed=1) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return float((sum(u * v for u, v in zip(a, b, strict=True)) / 3 + 1) ** 3)

    def mean(pairs: list[tuple[Tensor, Tensor]]) -> float:
        return sum(k(a, b) for a, b in pairs) / len(pairs)

    def estimate(x: Tensor, y: Tensor) -> float:
        own = [list(itertools.permutations(v, 2)) for v in (x, y)]
        return mean(own[0]) + mean(own[1]) - 2 * mean(list(itertools.product(x, y)))

    got = kid(x, y)
    assert got.value == pytest.approx(estimate(x, y), rel=1e-12)
    without = [[estimate(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(7)]]
    without += [[estimate(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(5)]]
    jackknife = sum((len(v) - 1) / len(v) * sum((u - sum(v) / len(v)) ** 2 for u in v) for v in without)
    assert got.standard_error == pytest.approx(math.sqrt(jackknife), rel=1e-10)


def test_large_sets_are_taken_in_pieces() -> None:
    x, y = normal(1500, 2), normal(1100, 2, seed=1)
    kxx, kyy, kxy = (gaussian_kernel(1.0)(a, b) for a, b in ((x, x), (y, y), (x, y)))
    expected = (kxx.sum() - 1500) / (1500 * 1499) + (kyy.sum() - 1100) / (1100 * 1099) - 2 * kxy.mean()
    assert squared_mmd(x, y, gaussian_kernel(1.0)).value == pytest.approx(float(expected), abs=1e-12)


def test_mmd_of_two_gaussians_has_a_closed_form() -> None:
    # E k(x, y) for N(0, 1), N(mu, 1) and width 1: exp(-mu^2 / 6) / sqrt(3).
    got = squared_mmd(normal(4000, 1), normal(4000, 1, seed=1) + 1.0, gaussian_kernel(1.0))
    expected = 2 * (1 - math.exp(-1 / 6)) / math.sqrt(3)
    assert abs(got.value - expected) < 3 * got.standard_error < 0.04


@pytest.mark.parametrize("shift, low, high", [(0.5, 0.8, 1.2), (0.0, 0.9, 1.7)])
def test_the_jackknife_is_the_spread_over_sets_and_kid_has_no_bias(shift: float, low: float, high: float) -> None:
    found = [kid(normal(80, 4, seed=k), normal(60, 4, seed=1000 + k) + shift) for k in range(200)]
    values = np.array([f.value for f in found])
    claimed = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert low < claimed / values.std() < high
    if shift == 0:
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)


def test_half_samples_give_the_standard_error_of_a_mean() -> None:
    for n in (60, 61, 7):
        x = normal(n, 1)
        got = standard_error(torch.mean, x, draws=3000)
        assert float(got) == pytest.approx(float(x.std()) / math.sqrt(n), rel=0.05)
    both = standard_error(
        lambda a, b: torch.stack([a.mean(), b.mean(), a.mean() - b.mean()]), normal(80), normal(80, seed=1)
    )
    assert float(both[2]) == pytest.approx(math.hypot(float(both[0]), float(both[1])), rel=0.2)
    with pytest.raises(ValueError, match="4 samples or more; got 40 of \\[3\\]"):
        standard_error(torch.mean, normal(3), draws=40)


def laws(d: int, apart: float, seed: int = 0) -> tuple[Moments, Tensor, Tensor, float]:
    """A reference as exact moments, mean and factor of a law that is some way from it, and their distance."""
    a = normal(d, d, seed=seed) / math.sqrt(d)
    c = a @ a.T + 0.3 * torch.eye(d)
    factor = (torch.eye(d) + apart * normal(d, d, seed=seed + 1) / math.sqrt(d)) @ torch.linalg.cholesky(c)
    mean = apart * normal(d, seed=seed + 2)
    exact = 10**9
    reference = Moments(exact, torch.zeros(d).double(), c * (exact - 1))
    law = Moments(exact, mean, factor @ factor.T * (exact - 1))
    return reference, mean, factor, frechet_distance(law, reference)


def test_the_bias_of_a_frechet_distance_is_known_and_its_interval_holds_the_truth() -> None:
    # 150 sets for each case; the standard error of a share of 0.95 is 0.018.
    for n, d, apart in ((200, 8, 0.0), (200, 8, 0.3), (400, 20, 0.1), (60, 20, 0.3)):
        reference, mean, factor, truth = laws(d, apart)
        found = [unbiased_frechet_distance(mean + normal(n, d, seed=k) @ factor.T, reference) for k in range(150)]
        values = np.array([f.value for f in found])
        plain = values + np.array([f.bias for f in found])
        inside = np.mean([f.interval[0] <= truth <= f.interval[1] for f in found])
        assert inside >= 0.9, (n, d, apart, inside)
        if n >= 10 * d:
            assert inside <= 0.995
            assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(150) + 0.05 * (plain.mean() - truth)
            claimed = math.sqrt(np.mean([f.standard_error**2 for f in found]))
            assert 0.85 < claimed / values.std() < 1.35
        assert plain.mean() - truth > 5 * abs(values.mean() - truth)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "sets"), [(200, 8, 400), (2000, 20, 400), (5000, 64, 120)])
@pytest.mark.parametrize("apart", [0.0, 0.05, 0.3])
def test_frechet_intervals_hold_the_truth_as_often_as_they_say(n: int, d: int, sets: int, apart: float) -> None:
    reference, mean, factor, truth = laws(d, apart)
    found = [
        measure(Sets(mean + normal(n, d, seed=k) @ factor.T, normal(4, d), reference), ["frechet"])["frechet"]
        for k in range(sets)
    ]
    inside = np.mean([f.interval[0] <= truth <= f.interval[1] for f in found])
    slack = 2 * math.sqrt(0.95 * 0.05 / sets)  # two standard errors: 0.022, or 0.04 with 120 sets
    assert 0.90 - slack < inside < 0.98 + slack


def test_directions_without_extent_have_no_bias() -> None:
    x = normal(300, 3)
    flat = torch.cat([x, torch.full((300, 2), 5.0, dtype=torch.float64)], 1)
    reference = Moments.of(torch.cat([normal(4000, 3, seed=1), torch.full((4000, 2), 5.0, dtype=torch.float64)], 1))
    found = unbiased_frechet_distance(flat, reference)
    same = unbiased_frechet_distance(x, Moments(4000, reference.mean[:3], reference.scatter[:3, :3]))
    assert found.value == pytest.approx(same.value, abs=1e-9)
    assert found.standard_error == pytest.approx(same.standard_error, rel=1e-6)


def test_neighbours_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    got = neighbours(torch.tensor([[0.5], [0.6], [0.7], [50.0]]), real, k=1)
    # Balls of the real ones reach 1: three of four generated lie in two balls each, and balls around 0 and 1 are hit.
    # Balls of the generated: 0.1 for the near ones, 49.3 around 50, which holds 1, 10, 11 (0.7 away at the nearest).
    assert got == (0.75, 0.75, 1.5, 0.5)


def test_neighbours_of_equal_laws_and_of_a_lost_mode() -> None:
    x, y = normal(2000, 2), normal(2000, 2, seed=1)
    same = neighbours(y, x)
    assert same.density == pytest.approx(1, abs=0.05)
    assert same.coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # Naeem et al. 2020, eq. 12 with n = m
    assert min(same.precision, same.recall) > 0.95
    half = neighbours(y[y[:, 0] > 0], x)
    assert half.precision > 0.95 and half.recall < 0.7 and half.coverage < 0.6
    outside = neighbours(torch.cat([y, y + 100]), x)
    assert outside.precision == pytest.approx(same.precision / 2) and outside.coverage == same.coverage


def test_neighbours_do_not_depend_on_the_piece() -> None:
    x, y = normal(1300, 3), normal(1200, 3, seed=1)
    whole = torch.cdist(y, x)
    own = torch.cdist(x, x).sort(1).values[:, 5]
    assert neighbours(y, x).precision == pytest.approx(float((whole <= own).any(1).double().mean()))
    assert neighbours(y, x).coverage == pytest.approx(float((whole <= own).any(0).double().mean()))


def test_inception_score_of_known_probabilities() -> None:
    p = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    marginal = p.mean(0)
    expected = math.exp(np.mean([scipy.stats.entropy(row.numpy(), marginal.numpy()) for row in p]))
    assert inception_score(p) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="softmax outputs"):
        inception_score(torch.tensor([[2.0, -1.0]]))


def test_sliced_wasserstein_on_the_line_and_of_gaussians() -> None:
    x, y = normal(30, 1), 2 * normal(20, 1, seed=1)
    # The cost of the optimal matching of 60 copies: what unequal sizes mean.
    a, b = (np.sort(np.repeat(v.numpy(), 60 // len(v))) for v in (x, y))
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(np.mean((a - b) ** 2)), rel=1e-10)
    # N(0, I) and N(mu, I): W2 on a line is |theta.mu|, and its mean square |mu|^2 / d.
    z = normal(2000, 8)
    assert sliced_wasserstein(z, z + 1.0, projections=4000) == pytest.approx(1.0, rel=0.03)
    assert sliced_wasserstein(z, z.flip(0)) == 0


def test_a_classifier_at_chance_and_one_that_knows() -> None:
    tree = DecisionTreeClassifier(random_state=0)
    found = [
        two_sample_accuracy(normal(60, 2, seed=k), normal(60, 2, seed=500 + k), classifier=tree) for k in range(60)
    ]
    values = np.array([f.value for f in found])
    assert abs(values.mean() - 0.5) < 3 * 0.5 / math.sqrt(60 * 60)
    wide = two_sample_accuracy(normal(600, 2), 3 * normal(600, 2, seed=1))
    assert wide.value > 0.7 and p_value(wide.value, 600) < 1e-6  # equal means: no linear classifier could
    assert wide.standard_error == pytest.approx(math.sqrt(wide.value * (1 - wide.value) / 600))
    assert p_value(0.5, 100) == 0.5


def test_measure_gives_every_figure_and_warns_of_few_samples() -> None:
    x, y = normal(1000, 2), normal(1000, 2, seed=1) + 1
    p = torch.softmax(normal(1000, 3), 1)
    found = measure(Sets(x, y, probabilities=p, draws=10), METRICS)
    assert list(found) == [name for metric in METRICS.values() for name in metric.figures]
    assert found["frechet"].value + found["frechet"].bias == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert found["kid"] == kid(x, y)
    assert found["coverage"].value == neighbours(x, y).coverage
    assert all(f.standard_error > 0 for f in found.values())
    with pytest.warns(UserWarning, match="kid: 50 samples in 2 dimensions are few, take 100 or more"):
        measure(Sets(x[:50], y), ["kid"])
    with pytest.raises(ValueError, match="unknown metric 'fid'; did you mean 'kid'"):
        measure(Sets(x, y), ["fid"])
    with pytest.raises(ValueError, match="features of a classifier"):
        measure(Sets(x, y), ["inception-score"])


def test_bad_features_are_refused_by_all() -> None:
    broken = normal(20, 2)
    broken[7, 0] = torch.inf
    for metric in (kid, squared_mmd, neighbours, sliced_wasserstein, two_sample_accuracy):
        with pytest.raises(ValueError, match="1 of 20 feature vectors are not finite; the first is 7"):
            metric(broken, normal(20, 2))
        with pytest.raises(ValueError, match="2 and 3 dimensions"):
            metric(normal(20, 2), normal(20, 3))


def test_an_interval() -> None:
    low, high = Estimate(1.0, 0.5).interval
    assert scipy.stats.norm(1.0, 0.5).cdf([low, high]) == pytest.approx([0.025, 0.975])


@pytest.mark.parametrize("value", [-0.3, -0.1, 0.0, 0.1, 0.7, 20.0])
def test_an_interval_holds_every_truth_that_its_own_variance_allows(value: float) -> None:
    base, growth = 0.01, 0.05
    low, high = Estimate(value, (base + growth * max(value, 0)) ** 0.5, growth=growth).interval

    def off(truth: float) -> float:  # of the value, in standard errors at the truth
        return (value - truth) / (base + growth * max(truth, 0)) ** 0.5

    assert low < value < high
    assert (off(low), off(high)) == pytest.approx((1.959964, -1.959964), rel=1e-5)
