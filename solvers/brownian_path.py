r"""One Brownian path per sample, by Levy's construction from counter-based normals.

A Brownian path W on a variance clock c(u), u in [0, 1], is Levy's midpoint construction on a dyadic tree:

    W(m) = (c_b - c_m)/(c_b - c_a) W(a) + (c_m - c_a)/(c_b - c_a) W(b)
           + sqrt((c_m - c_a)(c_b - c_m)/(c_b - c_a)) Z_ab,        m = (a + b) / 2,

with one normal Z_ab for each tree interval. W(u) is then a sum of depth + 3 normals whose weights are a
short scalar recursion from the leaf that holds u up to the root: no memory of earlier queries and no
recursion over tensors. Inside a leaf the same formula is used with m = u, which has the exact law as long
as a run asks at most once in each leaf. Runs with other grids query the same path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.noise import BROWNIAN, INDEPENDENT, standard_normal


class TimeChange(NamedTuple):
    """Position of a time on the tree, and variance of the path there.

    Both maps take a float, or a float64 tensor elementwise.
    """

    position: Callable[[Any], Any]
    variance: Callable[[Any], Any]


@lru_cache(maxsize=1024)
def levy_weights(variance: Callable[[Any], Any], u: float, depth: int) -> Mapping[int, float]:
    """W(u) as a sum of independent N(0, 1) numbers: {node: weight}; cached.

    Node 2^l + k is the interval [k, k+1] / 2^l of the tree; nodes 0 and -1 are the two ends of the path.
    The squares of the weights sum to c(u):

    >>> round(sum(w * w for w in levy_weights(lambda u: u, 0.3, depth=8).values()), 12)
    0.3
    """
    cells = 1 << depth
    k = min(int(u * cells), cells - 1)
    a, b = k / cells, (k + 1) / cells
    m, left, right = u, 0.0, 0.0
    weight_m = 1.0
    weights: dict[int, float] = {}
    node = cells + k
    ca, cb = variance(a), variance(b)
    while True:
        cm = variance(m)
        # p is not 1 - q: c grows by up to e^40 over an interval, and nothing of it would be left.
        q, p = (cb - cm) / (cb - ca), (cm - ca) / (cb - ca)
        weights[node] = weight_m * math.sqrt(max(q * (cm - ca), 0.0))
        left += weight_m * q
        right += weight_m * p
        if node == 1:
            break
        # One end of this interval is the midpoint of its parent: the other end stays an end.
        if node & 1:
            m, weight_m, left, right = a, left, 0.0, right
            a -= b - a
        else:
            m, weight_m, left, right = b, right, left, 0.0
            b += b - a
        ca, cb = variance(a), variance(b)
        node >>= 1
    weights[0] = right * math.sqrt(cb - ca)
    weights[-1] = (left + right) * math.sqrt(ca)
    return weights


@lru_cache(maxsize=1024)
def _increment_weights(variance: Callable[[Any], Any], u: float, v: float, depth: int) -> Mapping[int, float]:
    """The normalised increment from u to v as a sum of normals; cached, for the next batch takes the same steps."""
    scale = 1 / math.sqrt(abs(variance(v) - variance(u)))
    weights = dict(levy_weights(variance, v, depth))
    for node, w in levy_weights(variance, u, depth).items():
        weights[node] = weights.get(node, 0.0) - w
    return {n: w * scale for n, w in weights.items() if abs(w * scale) > 1e-8}


def levy_weights_each(variance: Callable[[Any], Any], u: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """``levy_weights`` of one position per sample: nodes and weights, both (depth + 3, B).

    Row i holds the node of every sample at level depth - i; the last two rows are the ends of the path.

    >>> nodes, weights = levy_weights_each(lambda u: u, torch.tensor([0.3, 0.8], dtype=torch.float64), depth=8)
    >>> weights.square().sum(0)
    tensor([0.3000, 0.8000], dtype=torch.float64)
    """
    below = torch.arange(depth + 1, device="cpu")[:, None]
    k = (u * (1 << depth)).long().clamp(max=(1 << depth) - 1) >> below
    first = 1 << (depth - below)
    left_end = k.double()
    a, b, m = left_end / first, (left_end + 1) / first, (left_end + 0.5) / first
    m[0] = u
    ca, cm, cb = variance(a), variance(m), variance(b)
    q, p = (cb - cm) / (cb - ca), (cm - ca) / (cb - ca)
    weights = (q * (cm - ca)).clamp_min(0).sqrt()
    odd = (k & 1).bool()
    inner, left, right = torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)
    for i in range(depth + 1):
        weights[i] *= inner
        left, right = left + inner * q[i], right + inner * p[i]
        if i < depth:
            # As in levy_weights: the end that is the parent's midpoint is passed on, the other stays an end.
            inner = torch.where(odd[i], left, right)
            left, right = left.masked_fill(odd[i], 0), right.masked_fill(~odd[i], 0)
    ends = torch.stack([right * (cb[-1] - ca[-1]).sqrt(), (left + right) * ca[-1].sqrt()])
    nodes = torch.cat([first + k, torch.tensor([[0], [-1]], device="cpu").expand(2, len(u))])
    return nodes, torch.cat([weights, ends])


# Solvers with a time for each sample choose their times during the run: the tree is deep enough that
# no two of them share a leaf.
_FINEST = 26


# So many normal numbers are drawn ahead at most (half a MB: they stay in the cache).
_NUMBERS = 2**17


@dataclass
class BrownianPath:
    """One Brownian path per sample; answers as ``Noise``.

    Attributes:
        seeds: (B,) int64.
        clock: the time change.
        depth: tree depth; a run is exact in law when no two of its times share a leaf of width 2^-depth.
            Per-sample times use a depth of at least 26.

    >>> from solvers.noise import as_seeds
    >>> line = TimeChange(lambda t: t, lambda u: u)
    >>> path = BrownianPath(as_seeds(range(2), 2), line)
    >>> x, (a, b, c) = torch.zeros(2, 3), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    >>> whole = path.increment(x, a, c) * 0.7**0.5
    >>> parts = path.increment(x, a, b) * 0.3**0.5 + path.increment(x, b, c) * 0.4**0.5
    >>> torch.allclose(whole, parts, atol=1e-6)
    True
    """

    seeds: Tensor
    clock: TimeChange
    depth: int = 10
    _grid: tuple[float, ...] = field(default=(), repr=False)
    _positions: dict[float, float] = field(default_factory=dict, repr=False)
    _normals: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _increments: dict[tuple[float, float], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def along(cls, seeds: Tensor, clock: TimeChange, times: Tensor) -> BrownianPath:
        """The path of a run along a grid: deep enough for it, and drawn many steps at a time."""
        u = clock.position(times.double().cpu()).tolist()
        return cls(seeds, clock, _depth(u), tuple(u), dict(zip(times.tolist(), u, strict=True)))

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The normalised increment W(s) - W(t), for times of the whole batch or of each sample.

        Raises:
            ValueError: the batch's times coincide on the clock. Per-sample times that do get 0.
        """
        if t.ndim > 0 or s.ndim > 0:
            return self._increment_each(x, t, s)
        u, v = self._position(float(t)), self._position(float(s))
        if u == v or self.clock.variance(u) == self.clock.variance(v):
            raise InputError(
                f"no Brownian increment between t = {float(t):.3g} and {float(s):.3g}: the times are too close to "
                "each other, or to an end of the path; use a grid with fewer or more even steps"
            )
        if (u, v) not in self._increments:
            self._draw(u, v, x)
        return _place(self._increments[u, v], x)

    def _draw(self, u: float, v: float, x: Tensor) -> None:
        """Draw an increment and, within the memory limit, those that follow on the grid.

        Many steps at a time: for small samples the overhead of a call dominates, and sums are faster within the cache.
        """
        following = self._grid[self._grid.index(v) :] if v in self._grid else ()
        plan: dict[tuple[float, float], Mapping[int, float]] = {}
        wanted: dict[int, None] = {}
        for a, b in ((u, v), *pairwise(following)):
            if len(wanted) * x.numel() > _NUMBERS or self.clock.variance(a) == self.clock.variance(b):
                break
            plan[a, b] = _increment_weights(self.clock.variance, a, b, self.depth)
            wanted.update(dict.fromkeys(plan[a, b]))
        fresh = [n for n in wanted if n not in self._normals]
        known = dict(self._normals)
        if fresh:
            nodes = torch.tensor(fresh, dtype=torch.int64, device="cpu")[:, None]
            known.update(zip(fresh, standard_normal(self.seeds, x.shape[1:], BROWNIAN, nodes), strict=True))
        self._normals = {n: known[n] for n in wanted}
        self._increments = {}
        for ends, weights in plan.items():
            total = torch.zeros(x.shape, dtype=torch.float32, device="cpu")
            for n, w in weights.items():
                total.add_(known[n], alpha=w)
            self._increments[ends] = total

    def _position(self, t: float) -> float:
        found = self._positions.get(t)
        return self.clock.position(t) if found is None else found

    def _increment_each(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        ones = (len(x), *(1,) * (x.ndim - 1))
        u, v = (self.clock.position(c.cpu().expand(ones).flatten()) for c in (t, s))
        depth = max(self.depth, _FINEST)
        nodes_u, weights_u = levy_weights_each(self.clock.variance, u, depth)
        nodes_v, weights_v = levy_weights_each(self.clock.variance, v, depth)
        span = (self.clock.variance(v) - self.clock.variance(u)).abs()
        scale = torch.where(span > 0, span.rsqrt(), 0.0)
        # Where both ends use one normal their weights are subtracted in float64, before it is drawn.
        shared = nodes_u == nodes_v
        weights_v = (weights_v - weights_u * shared) * scale
        weights_u = weights_u * ~shared * scale
        total = torch.zeros(x.shape, dtype=torch.float32, device="cpu")
        for node, w in zip(torch.cat([nodes_v, nodes_u]), torch.cat([weights_v, -weights_u]), strict=True):
            if bool(w.any()):
                z = standard_normal(self.seeds, x.shape[1:], BROWNIAN, node)
                total.addcmul_(z, w.to(torch.float32).reshape(ones))
        return _place(total, x)

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        """Noise keyed by (seed, time, k), independent of the path."""
        key = round(float(t) * 2**48) * 4096 + k
        return _place(standard_normal(self.seeds, x.shape[1:], INDEPENDENT, key), x)

    def rows(self, index: Tensor) -> BrownianPath:
        """The paths of the samples in ``index``."""
        return BrownianPath(self.seeds[index.cpu()], self.clock, self.depth)


def depth_for(clock: TimeChange, times: Tensor) -> int:
    """The tree depth at which no two times of a grid share a leaf (at least 9, at most 40)."""
    return _depth(clock.position(times.double().cpu()).tolist())


def _depth(positions: list[float]) -> int:
    u = sorted(set(positions))
    gap = min((b - a for a, b in pairwise(u)), default=1.0)
    return min(max(9, math.ceil(-math.log2(gap)) + 1), 40)


def _place(noise: Tensor, x: Tensor) -> Tensor:
    if x.device.type == "cuda":
        # A pinned, non-blocking copy: the host does not wait for the device.
        return noise.pin_memory().to(x.device, non_blocking=True).to(x.dtype)
    return noise.to(device=x.device, dtype=x.dtype, copy=True)
