r"""Thirty random models that no table was fitted to, for the floor under the default solver.

Exact models are mixtures of Gaussians with diagonal covariances, sum_k w_k N(mu_k, diag(c_k)): point masses, heavy
tails (a mixture of scales), narrow and wide data, data far from 0, spectra over many orders of magnitude. The others
are networks with random weights: random features with the preconditioning of Karras et al. 2022, and U-Nets.

>>> len(random_models())
30
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sde_diffusion import SDE, ScoreModel
from sde_diffusion.networks import UNet

Make = Callable[[SDE], ScoreModel]


class _Mixture(nn.Module):
    """The denoiser of a mixture with diagonal covariances: (x, t) -> E[x_0 | x_t = x]."""

    def __init__(self, means: Tensor, variances: Tensor, log_weights: Tensor, sde: SDE) -> None:
        super().__init__()
        self.means, self.variances, self.log_weights, self.sde = means, variances, log_weights, sde

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        at = t[:1] if bool((t == t[:1]).all()) else t  # one time for all costs less
        alpha, sigma = (c[:, None, None].double() for c in self.sde.marginal(at))
        spread = alpha**2 * self.variances + sigma**2
        apart = x.double()[:, None] - alpha * self.means
        joint = self.log_weights - (spread.log().sum(2) + (apart**2 / spread).sum(2)) / 2
        r = joint.softmax(1)[..., None]
        return (r * (self.means + alpha * self.variances / spread * apart)).sum(1).to(x.dtype)


def mixture(means: Tensor, variances: Tensor, weights: Tensor | None = None) -> Make:
    """The exact model of a mixture: means (K, d), variances like means, weights (K,)."""
    weights = torch.ones(len(means), dtype=torch.float64) if weights is None else weights
    log_weights = (weights / weights.sum()).log()
    return lambda sde: ScoreModel(_Mixture(means, variances, log_weights, sde), sde, "data", (means.shape[1],))


class _Features(nn.Module):
    """Random features with the preconditioning of Karras et al. 2022: (x, t) -> D."""

    def __init__(self, sde: SDE, d: int, size: float, gain: float, seed: int, width: int = 48) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.sde, self.size = sde, size
        self.first = torch.randn(d + 5, width, generator=g, dtype=torch.float64) * 1.5 / math.sqrt(d)
        self.second = gain * torch.randn(width, d, generator=g, dtype=torch.float64) / math.sqrt(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:, None].double() for c in self.sde.marginal(t))
        norm = torch.sqrt(sigma**2 + (self.size * alpha) ** 2)
        log = torch.log(sigma / (sigma + alpha * self.size)).clamp_min(-8)
        told = torch.cat(
            [x.double() / norm, log, (2 * log).sin(), (2 * log).cos(), (5 * log).sin(), (5 * log).cos()], 1
        )
        out = self.size**2 * alpha / norm**2 * x.double() + self.size * sigma / norm * (
            torch.tanh(told @ self.first) @ self.second
        )
        return out.to(x.dtype)


def features(d: int, size: float, gain: float, seed: int) -> Make:
    """A random-feature network on d dimensions, for data of a size."""
    return lambda sde: ScoreModel(_Features(sde, d, size, gain, seed), sde, "data", (d,))


def unet(predicts: str, gain: float, seed: int, sde: SDE) -> ScoreModel:
    """A U-Net on 8 x 8 images with random weights; those of its last layer, 0 at first, have a gain."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet((1, 8, 8), channels=16, multipliers=(1, 2), blocks=1)
        last = list(network.parameters())[-2]
        nn.init.normal_(last, std=gain / math.sqrt(last[0].numel()))
    return ScoreModel(network.double(), sde, predicts, (1, 8, 8)).double()


def _points(k: int, d: int, size: float, g: torch.Generator, std: float = 1e-6) -> Make:
    means = size * (2 * torch.rand(k, d, generator=g, dtype=torch.float64) - 1)
    return mixture(means, torch.full_like(means, std**2))


def _tails(d: int, freedom: float, g: torch.Generator, size: float = 0.5) -> Make:
    """Student's t of unit scale as a mixture of 24 Gaussians."""
    u = (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    a = 2 / (9 * freedom)
    s2 = 1 / (1 - a + math.sqrt(a) * torch.special.ndtri(u)).clamp_min(0.05) ** 3
    shape = torch.rand(d, generator=g, dtype=torch.float64) + 0.2
    return mixture(torch.zeros(24, d, dtype=torch.float64), size**2 * s2[:, None] * shape)


def _cloud(k: int, d: int, size: float, std: float, mean: float, g: torch.Generator) -> Make:
    means = mean + size * torch.randn(k, d, generator=g, dtype=torch.float64)
    return mixture(means, torch.full_like(means, std**2), torch.rand(k, generator=g, dtype=torch.float64) + 0.1)


def _gaussian(log_low: float, log_high: float, d: int, mean: float) -> Make:
    variances = torch.logspace(log_low, log_high, d, dtype=torch.float64)[None]
    return mixture(torch.full_like(variances, mean), variances)


def random_models() -> dict[str, Make]:
    """Name -> process -> model, in a fixed order."""
    g = torch.Generator().manual_seed(31)
    one = torch.full((1, 6), 1.7, dtype=torch.float64)
    return {
        "point": mixture(one, torch.zeros_like(one)),
        "2 points": _points(2, 3, 1.0, g),
        "20 points": _points(20, 3, 1.0, g),
        "60 points, 100-d": _points(60, 100, 1.0, g),
        "points of scale 8": _points(12, 4, 8.0, g),
        "tails 1-d": _tails(1, 3.0, g),
        "tails 8-d": _tails(8, 3.0, g),
        "tails 40-d": _tails(40, 5.0, g),
        "wide tails": _tails(4, 4.0, g, size=6.0),
        "narrow": _cloud(1, 8, 0.7, 1e-3, 0.0, g),
        "narrow cloud": _cloud(9, 3, 0.7, 5e-3, 0.0, g),
        "narrow, far": _cloud(5, 6, 0.2, 0.02, 4.0, g),
        "small cloud": _cloud(8, 16, 0.01, 0.003, 0.0, g),
        "small, mean 1": _cloud(8, 16, 0.02, 0.01, 1.0, g),
        "wide cloud": _cloud(7, 2, 10.0, 2.0, 5.0, g),
        "wide Gaussian": _gaussian(1.0, 3.0, 30, 0.0),
        "scale 30": _cloud(12, 24, 30.0, 8.0, 0.0, g),
        "mean 3": _cloud(10, 12, 0.6, 0.1, 3.0, g),
        "mean -2, image": _cloud(20, 192, 0.5, 0.2, -2.0, g),
        "steep spectrum": _gaussian(-6.0, 1.0, 32, 0.0),
        "steep spectrum, mean 1": _gaussian(-4.0, 0.0, 64, 1.0),
        "random features 4-d": features(4, 0.5, 1.0, 1),
        "random features 16-d": features(16, 1.0, 0.7, 2),
        "random features 64-d": features(64, 0.5, 1.5, 3),
        "random features, wide": features(12, 8.0, 0.8, 4),
        "random features, small": features(12, 0.05, 0.8, 5),
        "random features, rough": features(8, 0.5, 3.0, 6),
        "random U-Net, noise": partial(unet, "noise", 0.1, 7),
        "random U-Net, velocity": partial(unet, "velocity", 0.3, 8),
        "random U-Net, data": partial(unet, "data", 0.5, 9),
    }
