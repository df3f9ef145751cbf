"""Random laws of each kind: mixtures of Gaussians with diagonal covariances, in a basis of few coordinates.

Solvers are invariant to rotations, so a low-dimensional basis may be chosen. A mixture of K isotropic Gaussians in d
dimensions varies in K - 1 of them: one coordinate with multiplicity d - K + 1 (``count``) stands for the others in
every root mean square. A factorial law has independent coordinates, each with a mixture of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

DIMENSIONS, COMPONENTS = 32, 24
PARTS = 5

Draw = tuple[Tensor, Tensor, Tensor, Tensor]  # means (K, D), variances (K, D), weights (K,), count (D,)
Parts = tuple[Tensor, Tensor, Tensor]  # means, variances, weights (D, K')


def uniform(g: torch.Generator, low: float, high: float) -> float:
    """A number between two."""
    return low + (high - low) * float(torch.rand((), generator=g))


def log_uniform(g: torch.Generator, low: float, high: float) -> float:
    """A number between two, uniform in its logarithm."""
    return math.exp(uniform(g, math.log(low), math.log(high)))


def integer(g: torch.Generator, low: int, high: int) -> int:
    """An integer from low to high, both included."""
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
    d = (1, 2, 3, 8, 16, 32)[integer(g, 0, 5)]
    means = uniform(g, 0.3, 1.0) * torch.randn(integer(g, 2, COMPONENTS), d, generator=g, dtype=torch.float64)
    return _isotropic(means, log_uniform(g, 0.03, 0.4), g, uneven=True)


def _plane(g: torch.Generator) -> Draw:
    k = integer(g, 8, COMPONENTS)
    if integer(g, 0, 1):
        angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
        radius = torch.where(torch.arange(k) % 2 == 0, uniform(g, 0.2, 0.6), uniform(g, 0.7, 1.2))
        means = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    else:
        means = 2 * torch.rand(k, 2, generator=g, dtype=torch.float64) - 1
    return _isotropic(means, log_uniform(g, 0.02, 0.1), g, uneven=True)


def _spectrum(g: torch.Generator) -> Draw:
    """A Gaussian with the spectrum of images."""
    size, power = integer(g, 8, 48), uniform(g, 0.6, 1.4)
    f2 = torch.arange(size, dtype=torch.float64) ** 2
    v = (1 / (uniform(g, 0.5, 2) + f2[:, None] + f2) ** power).flatten().sort(descending=True).values
    parts = v.tensor_split(torch.logspace(0, math.log10(len(v)), DIMENSIONS + 1).long()[:-1].unique()[1:].tolist())
    c = torch.stack([p.mean() for p in parts])[:DIMENSIONS]
    count = torch.tensor([float(len(p)) for p in parts], dtype=torch.float64)[:DIMENSIONS]
    c = c * log_uniform(g, 0.03, 0.5) / ((c * count).sum() / count.sum())
    return torch.zeros(1, len(c), dtype=torch.float64), c[None], torch.ones(1, dtype=torch.float64), count


def _fields(g: torch.Generator, k: int) -> Tensor:
    """Smooth random images, or strokes: (k, d)."""
    size = integer(g, 12, 32)
    f2 = torch.arange(size, dtype=torch.float64) ** 2
    waves = torch.randn(k, size, size, generator=g, dtype=torch.float64)
    waves = waves / (1 + f2[:, None] + f2) ** uniform(g, 0.4, 0.8)
    x = torch.arange(size, dtype=torch.float64) + 0.5
    cosine = torch.cos(math.pi / size * x[:, None] * torch.arange(size))
    images = cosine @ waves @ cosine.T
    images = images / images.std()
    if integer(g, 0, 1):
        images = torch.tanh(3 * (images - uniform(g, 0, 1.5)))
        return images.reshape(k, -1)
    return uniform(g, 0.3, 0.6) * images.reshape(k, -1)


def _images(g: torch.Generator) -> Draw:
    return _isotropic(_fields(g, COMPONENTS), log_uniform(g, 0.05, 0.35), g)


def _digits(g: torch.Generator) -> Draw:
    images = torch.from_numpy(load_digits().images / 8 - 1).reshape(-1, 64)
    which = torch.randint(512, 1400, (COMPONENTS,), generator=g)
    return _isotropic(images[which], log_uniform(g, 0.08, 0.3), g)


def _mixed_spectrum(g: torch.Generator) -> Draw:
    """Components that share an image-like covariance."""
    _, c, _, count = _spectrum(g)
    k = integer(g, 2, 8)
    means = torch.randn(k, c.shape[1], generator=g, dtype=torch.float64) * c.sqrt() * uniform(g, 0.5, 1.5)
    means = torch.where(count > 8, means / count.sqrt(), means)
    return means, (c * uniform(g, 0.2, 0.7)).expand(k, -1), torch.ones(k, dtype=torch.float64), count


def _planes(g: torch.Generator) -> Draw:
    """Low-dimensional subspaces of a high-dimensional space."""
    d, k = DIMENSIONS, integer(g, 3, 6)
    v = torch.full((k, d), 1e-6, dtype=torch.float64)
    for row in v:
        row[torch.randperm(d - 1, generator=g)[:4]] = uniform(g, 0.3, 2) ** 2
    means = 0.3 * torch.randn(k, d, generator=g, dtype=torch.float64)
    means[:, -1] = 0
    count = torch.ones(d, dtype=torch.float64)
    count[-1] = uniform(g, 1, 200)
    return means, v, torch.ones(k, dtype=torch.float64), count


def _tails(g: torch.Generator) -> Draw:
    """Student's t as a mixture of scales."""
    d = (1, 4, 8, 24)[integer(g, 0, 3)]
    freedom = uniform(g, 3, 6)
    u = (torch.arange(COMPONENTS, dtype=torch.float64) + 0.5) / COMPONENTS
    s2 = (
        0.3 * freedom / (freedom * (1 - 2 / (9 * freedom) + math.sqrt(2 / (9 * freedom)) * torch.special.ndtri(u)) ** 3)
    )
    shape = torch.rand(d, generator=g, dtype=torch.float64) + 0.2
    mean = torch.zeros(COMPONENTS, d, dtype=torch.float64)
    return mean, s2[:, None] * shape, torch.ones(COMPONENTS, dtype=torch.float64), torch.ones(d, dtype=torch.float64)


def _narrow(g: torch.Generator) -> Draw:
    """Very narrow components."""
    means = uniform(g, 0.5, 1.0) * (2 * torch.rand(integer(g, 1, 20), integer(g, 2, 6), generator=g).double() - 1)
    return _isotropic(means, log_uniform(g, 1e-3, 1e-2), g)


def one_gaussian(g: torch.Generator) -> Draw:
    """One isotropic Gaussian, to which a random network is added."""
    d, std = DIMENSIONS, uniform(g, 0.3, 0.8)
    one = torch.ones(1, dtype=torch.float64)
    return torch.zeros(1, d, dtype=torch.float64), torch.full((1, d), std**2, dtype=torch.float64), one, torch.ones(d)


def _amplitudes(g: torch.Generator) -> Tensor:
    """Scales of 32 coordinates: equal, or falling as in images."""
    if integer(g, 0, 2) == 0:
        return torch.ones(DIMENSIONS, dtype=torch.float64) * uniform(g, 0.3, 1)
    falling = torch.linspace(1, 30, DIMENSIONS, dtype=torch.float64) ** -uniform(g, 0.4, 1.0)
    return falling * uniform(g, 0.3, 0.8) / falling.square().mean().sqrt()


def _pixels(g: torch.Generator) -> Parts:
    """Pixels: black, white, and few greys."""
    white = torch.rand(DIMENSIONS, 1, generator=g, dtype=torch.float64)
    grey = uniform(g, 0.02, 0.5) * torch.ones(DIMENSIONS, 3, dtype=torch.float64) / 3
    weights = torch.cat(
        [(1 - white) * (1 - grey.sum(1, keepdim=True)), white * (1 - grey.sum(1, keepdim=True)), grey], 1
    )
    means = torch.tensor([-1.0, 1.0, -0.6, 0.0, 0.6], dtype=torch.float64).expand(DIMENSIONS, -1)
    stds = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64) * log_uniform(g, 0.005, 0.08)
    return means * uniform(g, 0.5, 1), (stds + torch.tensor([0, 0, 0.3, 0.3, 0.3])).expand(DIMENSIONS, -1) ** 2, weights


def _binary(g: torch.Generator) -> Parts:
    """A few values of each coordinate."""
    a = _amplitudes(g)[:, None]
    means = a * 1.5 * (2 * torch.rand(DIMENSIONS, PARTS, generator=g, dtype=torch.float64) - 1)
    stds = a * log_uniform(g, 0.02, 0.3)
    return means, stds.expand(-1, PARTS) ** 2, torch.rand(DIMENSIONS, PARTS, generator=g, dtype=torch.float64) + 0.05


def _sparse(g: torch.Generator) -> Parts:
    """Mostly near zero, with long tails."""
    a = _amplitudes(g)[:, None]
    stds = a * torch.tensor([0.05, 0.2, 0.6, 1.4, 3.0], dtype=torch.float64)
    spike = uniform(g, 0.2, 0.8)
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
    "random network": (one_gaussian, (0.4, 1.2)),
    "rough images": (_images, (0.03, 0.15)),
    "rough digits": (_digits, (0.03, 0.15)),
    "rough spectrum": (_mixed_spectrum, (0.03, 0.15)),
}
