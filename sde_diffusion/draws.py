"""What chance decides in a training step: which samples, which times, which noise, which dropout.

Everything is a function of (seed, step): each use has a generator of its own that is seeded for
each step with a hash of (seed, use, step). So there is no generator state to save, a resumed run
draws what the uninterrupted one would have drawn, and what a past step saw can be named afterwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion import losses


def key(seed: int, use: str, number: int) -> int:
    """A 63-bit hash to seed a generator with.

    >>> key(0, "noise", 1) == key(0, "noise", 2)
    False
    """
    text = f"{seed}/{use}/{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(key(seed, "order", epoch)))


@dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Args:
        seed: of the run.
        samples: size of the data set.
        batch_size: samples in one step.
        t_min: smallest time.

    >>> draws = Draws(seed=0, samples=5, batch_size=2, t_min=1e-5)
    >>> torch.cat([draws.index(k) for k in range(1, 6)]).reshape(2, 5).sort().values  # two epochs
    tensor([[0, 1, 2, 3, 4],
            [0, 1, 2, 3, 4]])
    """

    seed: int
    samples: int
    batch_size: int
    t_min: float

    def index(self, step: int) -> Tensor:
        """The samples of step 1, 2, ..., (B,) int64: epoch after epoch, each in its own order.

        A batch may reach over the end of an epoch, so no sample is left out and every batch is
        full.
        """
        position, parts, left = (step - 1) * self.batch_size, [], self.batch_size
        while left:
            epoch, offset = divmod(position, self.samples)
            part = _permutation(self.samples, self.seed, epoch)[offset : offset + left]
            parts.append(part)
            position += len(part)
            left -= len(part)
        return torch.cat(parts)

    def times(self, step: int) -> Tensor:
        """Stratified times, (B,) float64 on the CPU."""
        return losses.times(self.batch_size, self.t_min, self._generator("times", step))

    def noise(self, step: int, x0: Tensor) -> Tensor:
        """Standard normal noise like x0, drawn on its device."""
        generator = self._generator("noise", step, x0.device)
        return torch.randn(x0.shape, dtype=x0.dtype, device=x0.device, generator=generator)

    def network_seed(self, step: int) -> int:
        """Seed of torch's own generator, from which dropout draws."""
        return key(self.seed, "network", step)

    def _generator(self, use: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(key(self.seed, use, step))
