"""Counter-based noise and the Brownian path.

Normality, independence, one stream for every batch, and the law of the Brownian path from its
weights.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde_diffusion.sde import VPSDE, CosineVPSDE
from solvers import ReverseProcess
from solvers.brownian_path import BrownianPath, TimeChange, depth_for, levy_weights, levy_weights_each
from solvers.noise import BROWNIAN, FORWARD, INDEPENDENT, PRIOR, as_seeds, standard_normal

LINE = TimeChange(lambda t: t, lambda u: u)
SNR = ReverseProcess(lambda x, t: x, VPSDE()).clock


def times(*values: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def dense(clock: TimeChange, u: float, depth: int, nodes: list[int]) -> Tensor:
    weights = levy_weights(clock.variance, u, depth)
    return torch.tensor([weights.get(n, 0.0) for n in nodes], dtype=torch.float64)


def test_moments_are_those_of_the_normal() -> None:
    """10^6 numbers.

    Standard errors of the first four moments are 1, sqrt 2, sqrt 15 and sqrt 96 times 1e-3.
    """
    z = standard_normal(range(1000), (1000,), BROWNIAN, 3).double()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4e-3 * math.sqrt(spread)


def test_the_distribution_function_is_the_normal_one() -> None:
    """Kolmogorov-Smirnov distance of 10^5 numbers.

    1.95 / sqrt(n) is exceeded once in a thousand.
    """
    z = standard_normal(range(100), (1000,), PRIOR).flatten().double().sort().values
    expected = torch.special.ndtr(z)
    steps = torch.arange(1, len(z) + 1) / len(z)
    assert float((expected - steps).abs().max()) < 1.95 / math.sqrt(len(z))


@pytest.mark.parametrize(
    "other",
    [
        standard_normal(range(1, 401), (500,), BROWNIAN, 7),  # next seed
        standard_normal(range(400), (500,), INDEPENDENT, 7),  # other stream
        standard_normal(range(400), (500,), BROWNIAN, 8),  # next counter
        standard_normal(range(400), (500,), BROWNIAN, 14),  # child node
        standard_normal(range(400), (500,), FORWARD, 7),
        standard_normal(range(400), (500,), BROWNIAN, 7).roll(1, dims=1),  # next position
        standard_normal(range(400), (500,), BROWNIAN, 7).roll(250, dims=1),  # same bits, other coordinate
    ],
)
def test_neighbouring_keys_are_independent(other: Tensor) -> None:
    """200,000 pairs: correlations of z and of z^2 have standard error 1/sqrt(n)."""
    z = standard_normal(range(400), (500,), BROWNIAN, 7).double().flatten()
    w = other.double().flatten()
    bound = 4 / math.sqrt(len(z))
    assert abs(float(torch.corrcoef(torch.stack([z, w]))[0, 1])) < bound
    assert abs(float(torch.corrcoef(torch.stack([z**2, w**2]))[0, 1])) < bound


def test_known_bits() -> None:
    """Three numbers from SplitMix64 in Python integers: what a seed gives must never change."""
    mask = 2**64 - 1
    gamma = 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    seed, stream, counter = 12345, 2, -1
    key = mix((mix((mix((seed + gamma) & mask) + stream * gamma) & mask) + counter * gamma) & mask)
    radius, angle = [], []
    for i in (1, 2):
        bits = mix((key + i * gamma) & mask)
        radius.append(math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32)))
        angle.append(2 * math.pi * (bits & 0xFFFFFFFF) / 2**32)
    expected = [
        radius[0] * math.cos(angle[0]),
        radius[1] * math.cos(angle[1]),
        radius[0] * math.sin(angle[0]),
    ]
    assert standard_normal([seed], (3,), stream, counter)[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 5)])
def test_a_sample_has_the_same_bits_in_every_batch(shape: tuple[int, ...]) -> None:
    together = standard_normal(range(64), shape, PRIOR)
    assert torch.equal(together[:7], standard_normal(range(7), shape, PRIOR))
    for k in (0, 6, 63):
        assert torch.equal(together[k : k + 1], standard_normal([k], shape, PRIOR))


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_increment_has_the_same_bits_in_every_batch(per_sample: bool) -> None:
    def increments(index: range) -> Tensor:
        path = BrownianPath(as_seeds(index, len(index)), SNR)
        t, s = times(0.8, 0.61)
        if per_sample:
            t = torch.tensor([0.8 - 0.001 * k for k in index], dtype=torch.float64)[:, None, None]
        return path.increment(torch.zeros(len(index), 3, 5), t, s)

    together = increments(range(64))
    assert torch.equal(together[:7], increments(range(7)))
    assert torch.equal(together[63:], increments(range(63, 64)))
    rows = BrownianPath(as_seeds(range(64), 64), SNR).rows(torch.tensor([5, 2]))
    assert rows.seeds.tolist() == [5, 2]


@pytest.mark.parametrize("clock", [LINE, SNR])
@pytest.mark.parametrize("depth", [5, 12, 26])
def test_covariance_is_the_smaller_clock_value(clock: TimeChange, depth: int) -> None:
    """The Gram matrix of the weights of W(u) is min(c(u), c(v)) to 1e-12."""
    u = [0.0, 0.03, 0.11, 0.25, 0.5, 0.61, 0.74, 0.9, 1.0]
    nodes = sorted({n for x in u for n in levy_weights(clock.variance, x, depth)})
    w = torch.stack([dense(clock, x, depth, nodes) for x in u])
    c = torch.tensor([clock.variance(x) for x in u], dtype=torch.float64)
    scale = torch.sqrt(c[:, None] * c).clamp_min(1e-300)
    gap = (w @ w.T - torch.minimum(c[:, None], c)) / scale
    assert float(gap.abs().max()) < 1e-12


@pytest.mark.parametrize("clock", [LINE, SNR])
def test_increments_of_a_grid_are_independent(clock: TimeChange) -> None:
    u = torch.linspace(0, 1, 40, dtype=torch.float64) ** 1.3
    depth = 12
    nodes = sorted({n for x in u for n in levy_weights(clock.variance, float(x), depth)})
    w = torch.stack([dense(clock, float(x), depth, nodes) for x in u]).diff(dim=0)
    w = w / w.norm(dim=1, keepdim=True)
    assert float((w @ w.T - torch.eye(len(w))).abs().max()) < 1e-12


def test_two_times_in_one_leaf_are_not_independent() -> None:
    """Why a run needs its depth.

    Within a leaf one normal serves all, and the Gram matrix says so.
    """
    u, v = 0.501, 0.51
    nodes = sorted({*levy_weights(LINE.variance, u, 5), *levy_weights(LINE.variance, v, 5)})
    gram = float(dense(LINE, u, 5, nodes) @ dense(LINE, v, 5, nodes))
    assert abs(gram - u) > 1e-3
    deep = depth_for(LINE, torch.tensor([u, v]))
    nodes = sorted({*levy_weights(LINE.variance, u, deep), *levy_weights(LINE.variance, v, deep)})
    assert float(dense(LINE, u, deep, nodes) @ dense(LINE, v, deep, nodes)) == pytest.approx(u, abs=1e-12)


def test_dyadic_points_do_not_depend_on_the_depth() -> None:
    """A deeper tree refines a path and does not move it."""
    for u in (0.25, 0.625, 0.0, 1.0):
        coarse = {n: w for n, w in levy_weights(SNR.variance, u, 6).items() if abs(w) > 1e-14}
        fine = {n: w for n, w in levy_weights(SNR.variance, u, 14).items() if abs(w) > 1e-14}
        assert fine == pytest.approx(coarse, rel=1e-12)


def test_ends_are_exact() -> None:
    """W(0) is node -1 alone, with variance c(0); W(1) adds node 0."""
    for clock in (LINE, SNR):
        start, end = levy_weights(clock.variance, 0.0, 9), levy_weights(clock.variance, 1.0, 9)
        c0, c1 = clock.variance(0.0), clock.variance(1.0)
        assert {n: w for n, w in start.items() if w} == pytest.approx({-1: math.sqrt(c0)} if c0 else {})
        assert {n: w for n, w in end.items() if w} == pytest.approx(
            {0: math.sqrt(c1 - c0)} | ({-1: math.sqrt(c0)} if c0 else {})
        )


@pytest.mark.parametrize("depth", [3, 10, 26])
def test_weights_for_each_sample_are_those_of_each_alone(depth: int) -> None:
    u = torch.tensor([0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0], dtype=torch.float64)
    for clock in (LINE, SNR):
        nodes, weights = levy_weights_each(clock.variance, u, depth)
        for k, position in enumerate(u.tolist()):
            alone = levy_weights(clock.variance, position, depth)
            assert dict(zip(nodes[:, k].tolist(), weights[:, k].tolist(), strict=True)) == pytest.approx(
                alone, rel=1e-9, abs=1e-12 * math.sqrt(clock.variance(1.0))
            )


def test_per_sample_times_ask_the_same_path() -> None:
    x = torch.zeros(3, 4)
    t, s = times(0.7, 0.4)
    path = BrownianPath(as_seeds(range(3), 3), SNR, depth=26)
    each = path.increment(x, t.expand(3, 1), s)
    assert torch.allclose(each, path.increment(x, t, s), atol=1e-5)
    mixed = path.increment(x, torch.tensor([[0.7], [0.65], [0.6]], dtype=torch.float64), s)
    for k, value in enumerate((0.7, 0.65, 0.6)):
        alone = path.rows(torch.tensor([k])).increment(x[:1], times(value)[0], s)
        assert torch.allclose(mixed[k : k + 1], alone, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_increments_add_up(per_sample: bool) -> None:
    """W(c) - W(a) = (W(b) - W(a)) + (W(c) - W(b)).

    A rejected step and its two halves see one path.
    """
    x = torch.zeros(2, 50)
    path = BrownianPath(as_seeds(range(2), 2), SNR, depth=20)
    a, b, c = (t.expand(2, 1) if per_sample else t for t in times(0.9, 0.55, 0.3))

    def piece(t: Tensor, s: Tensor) -> Tensor:
        span = SNR.variance(SNR.position(s)) - SNR.variance(SNR.position(t))
        return path.increment(x, t, s).double() * torch.as_tensor(span).sqrt()

    scale = float(piece(a, c).std())
    assert torch.allclose(piece(a, c), piece(a, b) + piece(b, c), atol=1e-5 * scale)


def test_increments_have_unit_variance() -> None:
    """200,000 numbers per case; the standard error of the variance is sqrt(2 / n) = 0.0032."""
    x = torch.zeros(4, 50_000)
    path = BrownianPath(as_seeds(range(4), 4), SNR)
    t = torch.tensor([[0.9], [0.5], [0.11], [0.02]], dtype=torch.float64)
    z = path.increment(x, t, t * 0.97)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.013)
    assert z.square().mean(1).tolist() == pytest.approx([1] * 4, abs=0.026)
    again = path.increment(x, t * 0.97, t * 0.9)
    assert abs(float((z * again).mean())) < 4 / math.sqrt(z.numel())


def test_clamped_ends() -> None:
    """Pure noise and clean data lie at the ends of the clock.

    Times beyond its range are one point of it.
    """
    cosine = ReverseProcess(lambda x, t: x, CosineVPSDE()).clock
    assert cosine.position(1.0) == 0.0
    assert cosine.position(0.0) == 1.0
    both = cosine.position(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert both.tolist() == pytest.approx([0.0, cosine.position(0.5), 1.0], abs=1e-15)

    path = BrownianPath(as_seeds([0], 1), cosine)
    x, (one, near, half) = torch.zeros(1, 10_000), times(1.0, 1 - 1e-9, 0.5)
    assert float(path.increment(x, one, half).square().mean()) == pytest.approx(1, abs=0.06)
    with pytest.raises(ValueError, match="too close"):
        path.increment(x, one, near)
    assert not bool(path.increment(x, one.expand(1, 1), near).any())


@pytest.mark.parametrize("seeds", [[0, 1], [0.5, 1.0, 2.0], [True, False, True]])
def test_seeds_are_one_integer_per_sample(seeds: list[float]) -> None:
    with pytest.raises(ValueError, match="one integer per sample"):
        as_seeds(seeds, 3)  # type: ignore[arg-type]


def test_independent_noise_is_keyed_by_time_and_number() -> None:
    path = BrownianPath(as_seeds(range(50), 50), SNR)
    x, (t, s) = torch.zeros(50, 1000), times(0.4, 0.4 + 1e-9)
    z = path.independent(x, t)
    assert torch.equal(z, path.independent(x, t))
    for other in (
        path.independent(x, t, 1),
        path.independent(x, s),
        path.increment(x, t, times(0.3)[0]),
    ):
        assert abs(float((z * other).mean())) < 4 / math.sqrt(z.numel())


@pytest.mark.parametrize(("size", "ahead"), [(3, 20), (2**15, 1)])
def test_normals_are_drawn_ahead_as_far_as_the_memory_goes(size: int, ahead: int) -> None:
    grid = torch.linspace(1, 0, 21, dtype=torch.float64)
    path = BrownianPath.along(torch.arange(8), LINE, grid)
    path.increment(torch.zeros(8, size), grid[0], grid[1])
    assert len(path._increments) == ahead
    for t, s in pairwise(grid):
        path.increment(torch.zeros(8, size), t, s)
    assert len(path._increments) <= ahead  # what was used is let go


def test_an_increment_is_the_callers_own() -> None:
    path = BrownianPath.along(torch.arange(4), LINE, torch.linspace(1, 0, 6, dtype=torch.float64))
    first = path.increment(torch.zeros(4, 3), *times(1.0, 0.8))
    kept = first.clone()
    first.zero_()
    assert torch.equal(path.increment(torch.zeros(4, 3), *times(1.0, 0.8)), kept)
    assert path.increment(torch.zeros(4, 3).double(), *times(0.8, 0.6)).dtype == torch.float64
