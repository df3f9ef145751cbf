r"""Random exact models, evaluated in one batch.

A model is a mixture of Gaussians with diagonal covariances, sum_k w_k N(mu_k, diag(c_k)), whose denoiser at
z = x_0 + rho eps has a closed form. Some models have an added random network in the form of Karras et al. 2022, eq. 7
(``gain``), which is rough in z and in log rho like trained networks.

Models of each kind (``KINDS``) are drawn by a seed; the training set has one seed, the held-out set another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from benchmarks.exact_family.laws import (
    COMPONENTS,
    DIMENSIONS,
    FACTORIAL,
    KINDS,
    PARTS,
    log_uniform,
    one_gaussian,
    uniform,
)

HIDDEN = 24


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

    def initial_noise(self, n: int, seed: int) -> Tensor:
        """Normal noise (P, n, D); a coordinate of large multiplicity has magnitude 1."""
        eps = torch.randn(
            len(self.names), n, self.mean.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        many = (self.count > 8) & (self.factorial == 0)[:, None]
        return torch.where(many[:, None], eps.sign(), eps)


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
                mean, variance, weight, count = one_gaussian(g)
                count = count.double()
                p, c, w = parts
                w = w / w.sum(1, keepdim=True)
                second_moment = (w * (c + p**2)).sum(1) - (w * p).sum(1) ** 2
                variance = second_moment[None].clamp_min(1e-4)  # gain of the added network
            else:
                mean, variance, weight, count = KINDS[kind][0](g)
            if number + i & 3 == 3:  # a quarter of them
                moved = uniform(g, -3, 3) / math.sqrt(2)
                mean, parts[0] = mean + moved, parts[0] + moved
            size = log_uniform(g, 0.5, 2) if i % 2 else 1.0
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
            gain = torch.tensor(uniform(g, low, high), dtype=torch.float64)
            log_parts = (parts[2] / parts[2].sum(1, keepdim=True)).log()
            by_parts = (parts[0] * size, parts[1] * size**2, log_parts)
            flag = torch.tensor(float(kind in FACTORIAL), dtype=torch.float64)
            made.append((means, variances, logs, counts, gain, size_of_data, first, second, *by_parts, flag))
            names.append(kind)
    return ModelSet(*(torch.stack(column) for column in zip(*made, strict=True)), tuple(names))
