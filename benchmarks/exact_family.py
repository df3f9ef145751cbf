r"""Random exact models, evaluated in one batch, from every noise level at which a path may start.

A model is a mixture of Gaussians with diagonal covariances, sum_k w_k N(mu_k, diag(c_k)), whose denoiser at
z = x_0 + rho eps has a closed form; solvers are invariant to rotations, so a low-dimensional basis may be chosen.
A mixture of K isotropic Gaussians in d dimensions varies in K - 1 of them: one coordinate with multiplicity d - K + 1
(``count``) stands for the others in every root mean square. Some models have an added random network in the form of
Karras et al. 2022, eq. 7 (``gain``), which is rough in z and in log rho like trained networks.

Models of each kind (``KINDS``) are drawn by a seed; the training set has one seed, the held-out set another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from solvers import ReverseProcess, Scales, solve
from solvers.solver import Solver

STARTS = (3.0, 6.6, 14.6, 80.0, 152.0, 1000.0, math.inf)
DIMENSIONS, COMPONENTS, HIDDEN = 32, 24, 24
_FAR = 1e5  # start of the reference solution for a path that starts at infinity
_REFERENCE_STEPS = 140
CACHE = Path("runs/exact-family")

Draw = tuple[Tensor, Tensor, Tensor, Tensor]  # means (K, D), variances (K, D), weights (K,), count (D,)


@dataclass(frozen=True)
class ModelSet:
    """A batch of P exact models.

    Attributes:
        mean: (P, K, D).
        variance: (P, K, D).
        log_weight: (P, K); -inf for missing components.
        count: (P, D): the multiplicity of each coordinate.
        gain: (P,): gain of the random network.
        size: (P,): its sigma_data.
        first: (P, D + 5, H), second: (P, H, D): its layers.
        part_mean, part_variance, part_weight: (P, D, K'): mixtures of single coordinates, and logs of their weights.
        factorial: (P,): 1 if coordinates are independent, each with its own mixture.
        names: the kind of each model.
    """

    mean: Tensor
    variance: Tensor
    log_weight: Tensor
    count: Tensor
    gain: Tensor
    size: Tensor
    first: Tensor
    second: Tensor
    part_mean: Tensor
    part_variance: Tensor
    part_weight: Tensor
    factorial: Tensor
    names: tuple[str, ...]

    def denoise(self, z: Tensor, rho: Tensor) -> Tensor:
        """E[x_0 | z] for z (P, B, D) at rho, (P, 1, 1) or 0-d."""
        spread = self.variance + rho**2
        inverse = 1 / spread
        joint = (
            (self.log_weight - (spread.log() + self.mean**2 * inverse).sum(2) / 2)[:, None]
            + torch.bmm(z, (self.mean * inverse).mT)
            - torch.bmm(z**2, inverse.mT) / 2
        )
        r = joint.softmax(2)
        gain = self.variance * inverse
        out = torch.bmm(r, self.mean - gain * self.mean) + torch.bmm(r, gain) * z
        which = self.factorial.nonzero()[:, 0]
        if len(which):
            out = out.index_copy(0, which, self._by_coordinate(which, z, rho))
        norm = torch.sqrt(rho**2 + self.size[:, None, None] ** 2)
        log = torch.log(rho / self.size[:, None, None])
        log = log.clamp(-6, 6) * torch.ones_like(z[..., :1])
        told = torch.cat([z / norm, log / 4, (2 * log).sin(), (2 * log).cos(), (5 * log).sin(), (5 * log).cos()], 2)
        hidden = torch.tanh(torch.bmm(told, self.first))
        return out + self.gain[:, None, None] * (rho * self.size[:, None, None] / norm) * torch.bmm(hidden, self.second)

    def _by_coordinate(self, which: Tensor, z: Tensor, rho: Tensor) -> Tensor:
        mean, variance = self.part_mean[which, None], self.part_variance[which, None]
        spread = variance + (rho if rho.ndim == 0 else rho[which, ..., None]) ** 2
        apart = z[which, ..., None] - mean
        r = (self.part_weight[which, None] - spread.log() / 2 - apart**2 / (2 * spread)).softmax(3)
        return (r * (mean + variance / spread * apart)).sum(3)

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square over the dimensions of (P, B, D): (P, B)."""
        # The smallest positive number keeps the derivative at 0 finite.
        return ((x**2 * self.count[:, None]).sum(2) / self.count.sum(1)[:, None] + 1e-24).sqrt()

    def to(self, dtype: torch.dtype) -> ModelSet:
        """The models in another dtype."""
        return ModelSet(*(getattr(self, f.name).to(dtype) for f in fields(self)[:-1]), self.names)

    def part(self, which: Sequence[int]) -> ModelSet:
        """Some of the models."""
        index = torch.as_tensor(which)
        return ModelSet(*(getattr(self, f.name)[index] for f in fields(self)[:-1]), tuple(self.names[i] for i in which))

    @property
    def fingerprint(self) -> str:
        """A hash of the models, twelve hex digits."""
        digest = hashlib.sha256()
        for f in fields(self)[:-1]:
            digest.update(getattr(self, f.name).numpy().tobytes())
        return digest.hexdigest()[:12]

    def noises(self, n: int, seed: int) -> Tensor:
        """Normal noise (P, n, D); a coordinate of large multiplicity has magnitude 1."""
        eps = torch.randn(
            len(self.names), n, self.mean.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        many = (self.count > 8) & (self.factorial == 0)[:, None]
        return torch.where(many[:, None], eps.sign(), eps)


def _rand(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def _log_rand(g: torch.Generator, low: float, high: float) -> float:
    return math.exp(_rand(g, math.log(low), math.log(high)))


def _whole(g: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def _isotropic(means: Tensor, std: float, g: torch.Generator, uneven: bool = False) -> Draw:
    """Isotropic Gaussians at means (K, d), in the subspace of the means if d is large."""
    k, d = means.shape
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.1 if uneven else torch.ones(k, dtype=torch.float64)
    if d <= DIMENSIONS:
        return means, torch.full((k, d), std**2, dtype=torch.float64), weights, torch.ones(d, dtype=torch.float64)
    centre = means.mean(0)
    basis = torch.linalg.svd(means - centre, full_matrices=False)[2][: k - 1]
    inside = (means - centre) @ basis.T
    # The centre is a shift along one more direction.
    left = centre - (centre @ basis.T) @ basis
    inside = inside + centre @ basis.T
    rest = torch.full((k, 1), float(left.norm()) / math.sqrt(d - k + 1), dtype=torch.float64)
    mean = torch.cat([inside, rest], 1)
    count = torch.cat([torch.ones(k - 1, dtype=torch.float64), torch.tensor([float(d - k + 1)], dtype=torch.float64)])
    return mean, torch.full((k, k), std**2, dtype=torch.float64), weights, count


def _cloud(g: torch.Generator) -> Draw:
    d = (1, 2, 3, 8, 16, 32)[_whole(g, 0, 5)]
    means = _rand(g, 0.3, 1.0) * torch.randn(_whole(g, 2, COMPONENTS), d, generator=g, dtype=torch.float64)
    return _isotropic(means, _log_rand(g, 0.03, 0.4), g, uneven=True)


def _plane(g: torch.Generator) -> Draw:
    k = _whole(g, 8, COMPONENTS)
    if _whole(g, 0, 1):
        angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
        radius = torch.where(torch.arange(k) % 2 == 0, _rand(g, 0.2, 0.6), _rand(g, 0.7, 1.2))
        means = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    else:
        means = 2 * torch.rand(k, 2, generator=g, dtype=torch.float64) - 1
    return _isotropic(means, _log_rand(g, 0.02, 0.1), g, uneven=True)


def _spectrum(g: torch.Generator) -> Draw:
    """A Gaussian with the spectrum of images."""
    size, power = _whole(g, 8, 48), _rand(g, 0.6, 1.4)
    f2 = torch.arange(size, dtype=torch.float64) ** 2
    v = (1 / (_rand(g, 0.5, 2) + f2[:, None] + f2) ** power).flatten().sort(descending=True).values
    parts = v.tensor_split(torch.logspace(0, math.log10(len(v)), DIMENSIONS + 1).long()[:-1].unique()[1:].tolist())
    c = torch.stack([p.mean() for p in parts])[:DIMENSIONS]
    count = torch.tensor([float(len(p)) for p in parts], dtype=torch.float64)[:DIMENSIONS]
    c = c * _log_rand(g, 0.03, 0.5) / ((c * count).sum() / count.sum())
    return torch.zeros(1, len(c), dtype=torch.float64), c[None], torch.ones(1, dtype=torch.float64), count


def _fields(g: torch.Generator, k: int) -> Tensor:
    """Smooth random images, or strokes: (k, d)."""
    size = _whole(g, 12, 32)
    f2 = torch.arange(size, dtype=torch.float64) ** 2
    waves = torch.randn(k, size, size, generator=g, dtype=torch.float64) / (1 + f2[:, None] + f2) ** _rand(g, 0.4, 0.8)
    x = torch.arange(size, dtype=torch.float64) + 0.5
    cosine = torch.cos(math.pi / size * x[:, None] * torch.arange(size))
    images = cosine @ waves @ cosine.T
    images = images / images.std()
    if _whole(g, 0, 1):
        images = torch.tanh(3 * (images - _rand(g, 0, 1.5)))
        return images.reshape(k, -1)
    return _rand(g, 0.3, 0.6) * images.reshape(k, -1)


def _images(g: torch.Generator) -> Draw:
    return _isotropic(_fields(g, COMPONENTS), _log_rand(g, 0.05, 0.35), g)


def _digits(g: torch.Generator) -> Draw:
    images = torch.from_numpy(load_digits().images / 8 - 1).reshape(-1, 64)
    which = torch.randint(512, 1400, (COMPONENTS,), generator=g)
    return _isotropic(images[which], _log_rand(g, 0.08, 0.3), g)


def _mixed_spectrum(g: torch.Generator) -> Draw:
    """Components that share an image-like covariance."""
    _, c, _, count = _spectrum(g)
    k = _whole(g, 2, 8)
    means = torch.randn(k, c.shape[1], generator=g, dtype=torch.float64) * c.sqrt() * _rand(g, 0.5, 1.5)
    means = torch.where(count > 8, means / count.sqrt(), means)
    return means, (c * _rand(g, 0.2, 0.7)).expand(k, -1), torch.ones(k, dtype=torch.float64), count


def _planes(g: torch.Generator) -> Draw:
    """Low-dimensional subspaces of a high-dimensional space."""
    d, k = DIMENSIONS, _whole(g, 3, 6)
    v = torch.full((k, d), 1e-6, dtype=torch.float64)
    for row in v:
        row[torch.randperm(d - 1, generator=g)[:4]] = _rand(g, 0.3, 2) ** 2
    means = 0.3 * torch.randn(k, d, generator=g, dtype=torch.float64)
    means[:, -1] = 0
    count = torch.ones(d, dtype=torch.float64)
    count[-1] = _rand(g, 1, 200)
    return means, v, torch.ones(k, dtype=torch.float64), count


def _tails(g: torch.Generator) -> Draw:
    """Student's t as a mixture of scales."""
    d = (1, 4, 8, 24)[_whole(g, 0, 3)]
    freedom = _rand(g, 3, 6)
    u = (torch.arange(COMPONENTS, dtype=torch.float64) + 0.5) / COMPONENTS
    s2 = (
        0.3 * freedom / (freedom * (1 - 2 / (9 * freedom) + math.sqrt(2 / (9 * freedom)) * torch.special.ndtri(u)) ** 3)
    )
    shape = torch.rand(d, generator=g, dtype=torch.float64) + 0.2
    mean = torch.zeros(COMPONENTS, d, dtype=torch.float64)
    return mean, s2[:, None] * shape, torch.ones(COMPONENTS, dtype=torch.float64), torch.ones(d, dtype=torch.float64)


def _narrow(g: torch.Generator) -> Draw:
    """Very narrow components."""
    means = _rand(g, 0.5, 1.0) * (2 * torch.rand(_whole(g, 1, 20), _whole(g, 2, 6), generator=g).double() - 1)
    return _isotropic(means, _log_rand(g, 1e-3, 1e-2), g)


def _plain(g: torch.Generator) -> Draw:
    """One isotropic Gaussian, to which a random network is added."""
    d, std = DIMENSIONS, _rand(g, 0.3, 0.8)
    one = torch.ones(1, dtype=torch.float64)
    return torch.zeros(1, d, dtype=torch.float64), torch.full((1, d), std**2, dtype=torch.float64), one, torch.ones(d)


PARTS = 5
Parts = tuple[Tensor, Tensor, Tensor]  # means, variances, weights (D, K')


def _amplitudes(g: torch.Generator) -> Tensor:
    """Scales of 32 coordinates: equal, or falling as in images."""
    if _whole(g, 0, 2) == 0:
        return torch.ones(DIMENSIONS, dtype=torch.float64) * _rand(g, 0.3, 1)
    falling = torch.linspace(1, 30, DIMENSIONS, dtype=torch.float64) ** -_rand(g, 0.4, 1.0)
    return falling * _rand(g, 0.3, 0.8) / falling.square().mean().sqrt()


def _pixels(g: torch.Generator) -> Parts:
    """Pixels: black, white, and few greys."""
    white = torch.rand(DIMENSIONS, 1, generator=g, dtype=torch.float64)
    grey = _rand(g, 0.02, 0.5) * torch.ones(DIMENSIONS, 3, dtype=torch.float64) / 3
    weights = torch.cat(
        [(1 - white) * (1 - grey.sum(1, keepdim=True)), white * (1 - grey.sum(1, keepdim=True)), grey], 1
    )
    means = torch.tensor([-1.0, 1.0, -0.6, 0.0, 0.6], dtype=torch.float64).expand(DIMENSIONS, -1)
    stds = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64) * _log_rand(g, 0.005, 0.08)
    return means * _rand(g, 0.5, 1), (stds + torch.tensor([0, 0, 0.3, 0.3, 0.3])).expand(DIMENSIONS, -1) ** 2, weights


def _binary(g: torch.Generator) -> Parts:
    """A few values of each coordinate."""
    a = _amplitudes(g)[:, None]
    means = a * 1.5 * (2 * torch.rand(DIMENSIONS, PARTS, generator=g, dtype=torch.float64) - 1)
    stds = a * _log_rand(g, 0.02, 0.3)
    return means, stds.expand(-1, PARTS) ** 2, torch.rand(DIMENSIONS, PARTS, generator=g, dtype=torch.float64) + 0.05


def _sparse(g: torch.Generator) -> Parts:
    """Mostly near zero, with long tails."""
    a = _amplitudes(g)[:, None]
    stds = a * torch.tensor([0.05, 0.2, 0.6, 1.4, 3.0], dtype=torch.float64)
    spike = _rand(g, 0.2, 0.8)
    weights = torch.tensor([spike, 0.6 * (1 - spike), 0.2, 0.12, 0.04], dtype=torch.float64)
    return torch.zeros(DIMENSIONS, PARTS, dtype=torch.float64), stds**2, weights.expand(DIMENSIONS, -1)


FACTORIAL: dict[str, tuple[Callable[[torch.Generator], Parts], tuple[float, float]]] = {
    "pixels": (_pixels, (0, 0)),
    "values": (_binary, (0, 0)),
    "sparse": (_sparse, (0, 0)),
    "rough pixels": (_pixels, (0.03, 0.15)),
    "rough values": (_binary, (0.03, 0.15)),
    "rough sparse": (_sparse, (0.03, 0.15)),
}
KINDS: dict[str, tuple[Callable[[torch.Generator], Draw], tuple[float, float]]] = {
    "cloud": (_cloud, (0, 0)),
    "plane": (_plane, (0, 0)),
    "spectrum": (_spectrum, (0, 0)),
    "images": (_images, (0, 0)),
    "digits": (_digits, (0, 0)),
    "mixed spectrum": (_mixed_spectrum, (0, 0)),
    "planes": (_planes, (0, 0)),
    "tails": (_tails, (0, 0)),
    "narrow": (_narrow, (0, 0)),
    "random network": (_plain, (0.4, 1.2)),
    "rough images": (_images, (0.03, 0.15)),
    "rough digits": (_digits, (0.03, 0.15)),
    "rough spectrum": (_mixed_spectrum, (0.03, 0.15)),
}


def model_set(seed: int, each: int = 4, kinds: Sequence[str] = (*KINDS, *FACTORIAL)) -> ModelSet:
    """``each`` models of every kind; some are shifted or scaled.

    >>> model_set(0, 1).mean.shape
    torch.Size([19, 24, 32])
    """
    made, names = [], []
    for number, kind in enumerate(kinds):
        for i in range(each):
            g = torch.Generator().manual_seed(1_000_000 * seed + 1000 * [*KINDS, *FACTORIAL].index(kind) + i)
            low, high = (KINDS | FACTORIAL)[kind][1]
            parts = torch.zeros(3, DIMENSIONS, PARTS, dtype=torch.float64)
            parts[1:] = 1.0
            if kind in FACTORIAL:
                parts = torch.stack([c.expand(DIMENSIONS, PARTS) for c in FACTORIAL[kind][0](g)])
                mean, variance, weight, count = _plain(g)
                count = count.double()
                p, c, w = parts
                w = w / w.sum(1, keepdim=True)
                second_moment = (w * (c + p**2)).sum(1) - (w * p).sum(1) ** 2
                variance = second_moment[None].clamp_min(1e-4)  # gain of the added network
            else:
                mean, variance, weight, count = KINDS[kind][0](g)
            if number + i & 3 == 3:  # a quarter of them
                moved = _rand(g, -3, 3) / math.sqrt(2)
                mean, parts[0] = mean + moved, parts[0] + moved
            size = _log_rand(g, 0.5, 2) if i % 2 else 1.0
            k, d = mean.shape
            pad = torch.zeros(COMPONENTS, DIMENSIONS, dtype=torch.float64)
            means, variances, counts = pad.clone(), pad.clone(), pad[0].clone()
            means[:k, :d], variances[:k, :d], counts[:d] = mean * size, variance * size**2, count
            variances = torch.where(counts > 0, variances.clamp_min(1e-8), torch.ones(()).double())
            logs = torch.full((COMPONENTS,), -math.inf, dtype=torch.float64)
            logs[:k] = (weight / weight.sum()).log()
            first = torch.randn(DIMENSIONS + 5, HIDDEN, generator=g, dtype=torch.float64)
            first[:DIMENSIONS] *= (counts > 0)[:, None] * 1.5 / math.sqrt(d)
            second = (
                torch.randn(HIDDEN, DIMENSIONS, generator=g, dtype=torch.float64) * (counts > 0) / math.sqrt(HIDDEN)
            )
            size_of_data = ((variances * counts)[:k].mean(0).sum() / counts.sum() + 0.05 * size**2).sqrt()
            gain = torch.tensor(_rand(g, low, high), dtype=torch.float64)
            log_parts = (parts[2] / parts[2].sum(1, keepdim=True)).log()
            by_parts = (parts[0] * size, parts[1] * size**2, log_parts)
            flag = torch.tensor(float(kind in FACTORIAL), dtype=torch.float64)
            made.append((means, variances, logs, counts, gain, size_of_data, first, second, *by_parts, flag))
            names.append(kind)
    return ModelSet(*(torch.stack(column) for column in zip(*made, strict=True)), tuple(names))


@torch.no_grad()
def flow(models: ModelSet, z: Tensor, start: float, steps: int = _REFERENCE_STEPS, end: float = 1e-4) -> Tensor:
    """The reference solution: Runge-Kutta of order 4 in log rho on z / sqrt(1 + rho^2)."""
    logs = torch.linspace(math.log(min(start, _FAR)), math.log(end), steps + 1, dtype=torch.float64)

    def slope(y: Tensor, log: Tensor) -> Tensor:
        n2 = 1 + torch.exp(2 * log)
        n = n2.sqrt()
        return (y / n - models.denoise(y * n, log.exp())) / n

    y, h = z / torch.sqrt(1 + torch.exp(2 * logs[0])), logs[1] - logs[0]
    for log in logs[:-1]:
        a = slope(y, log)
        b = slope(y + h / 2 * a, log + h / 2)
        c = slope(y + h / 2 * b, log + h / 2)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, log + h))
    return models.denoise(y * torch.sqrt(1 + torch.exp(2 * logs[-1])), logs[-1].exp())


@dataclass(frozen=True)
class Task:
    """Models from one start, with initial noise and its endpoints."""

    models: ModelSet
    start: float
    eps: Tensor
    ends: Tensor

    def path(self, t: Tensor) -> Scales:
        """The straight path from this start: x = (1 - s) x_0 + s eps, s = t s_1."""
        top = 1.0 if math.isinf(self.start) else self.start / (1 + self.start)
        return Scales(1 - top * t, top * t, -top * torch.ones_like(t), top * torch.ones_like(t))

    @torch.no_grad()
    def run(self, solver: str | Solver, nfe: int, grid: Tensor | str | None = None) -> Tensor:
        """Errors of a solver, (P, B)."""
        p, b, d = self.eps.shape

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self.path(t[0])[:2]
            x = x.reshape(p, b, d)
            if float(alpha) == 0:
                return self.models.denoise(x / sigma * _FAR, torch.tensor(_FAR).double()).reshape(p * b, d)
            return self.models.denoise(x / alpha, sigma / alpha).reshape(p * b, d)

        sigma = self.path(torch.ones((), dtype=torch.float64)).sigma
        x1 = (self.eps * sigma).reshape(p * b, d)
        x = solve(ReverseProcess(denoise, self.path), x1, solver=solver, nfe=nfe, grid=grid).x.reshape(p, b, d)
        error = self.models.rms(x - self.ends)
        return torch.where(error.isfinite(), error, 1e6)


def task(models: ModelSet, start: float, n: int = 32, seed: int = 0, cache: Path = CACHE) -> Task:
    """Models from one start, with their reference solution, stored or computed."""
    eps = models.noises(n, seed)
    path = cache / f"{models.fingerprint}-{start:g}-{n}-{seed}-{_REFERENCE_STEPS}.pt"
    if path.exists():
        return Task(models, start, eps, torch.load(path))
    ends = flow(models, eps * min(start, _FAR), start)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(ends, path)
    return Task(models, start, eps, ends)
