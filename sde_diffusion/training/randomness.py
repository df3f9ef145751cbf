"""Random draws of a training step: indices, times, noise, dropout.

All draws are functions of (seed, step, row), where the row counts the samples of one update over all processes and
micro-batches. So there is no generator state to save, a resumed run has the draws of an uninterrupted run, the draws
of a past step can be computed again, and a batch of 64 on one process has the same samples, times and noise as two
batches of 32 on two processes.

Order, times and labels are drawn for the whole batch, and each process takes its rows. Noise is drawn in blocks of
``BLOCK`` rows with one generator for each block, so that a process draws its own rows only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 32


def key(seed: int, use: str, *numbers: int) -> int:
    """A 63-bit hash, the seed of a generator.

    >>> key(0, "noise", 1, 0) == key(0, "noise", 1, 1)
    False
    """
    text = "/".join(map(str, (seed, use, *numbers))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(key(seed, "order", epoch)))


@dataclass(frozen=True)
class StepRandomness:
    """The random draws of a training run.

    Args:
        seed: seed of the run.
        samples: size of the data set.
        batch_size: number of samples in one step, over all processes.

    >>> draws = StepRandomness(seed=0, samples=5, batch_size=2)
    >>> torch.cat([draws.index(k) for k in range(1, 6)]).reshape(2, 5).sort().values  # two epochs
    tensor([[0, 1, 2, 3, 4],
            [0, 1, 2, 3, 4]])
    """

    seed: int
    samples: int
    batch_size: int

    def index(self, step: int) -> Tensor:
        """The samples of step 1, 2, ..., (B,) int64: epoch after epoch, each in its own order.

        A batch may continue into the next epoch, so no sample is left out and every batch is full.
        """
        position, parts, left = (step - 1) * self.batch_size, [], self.batch_size
        while left:
            epoch, offset = divmod(position, self.samples)
            part = _permutation(self.samples, self.seed, epoch)[offset : offset + left]
            parts.append(part)
            position += len(part)
            left -= len(part)
        return torch.cat(parts)

    def noise(self, step: int, x0: Tensor, first: int = 0, use: str = "noise") -> Tensor:
        """Standard normal noise like x0, drawn on its device, for the rows from ``first`` on.

        >>> draws, x0 = StepRandomness(0, 100, 64), torch.zeros(64, 3)
        >>> torch.equal(draws.noise(1, x0)[40:50], draws.noise(1, x0[:10], first=40))
        True
        """
        start = first // BLOCK
        stop = -(-(first + len(x0)) // BLOCK)
        blocks = torch.empty(((stop - start) * BLOCK, *x0.shape[1:]), dtype=x0.dtype, device=x0.device)
        for number, block in enumerate(torch.split(blocks, BLOCK), start):
            block.normal_(generator=self.generator(use, step, number, device=x0.device))
        return blocks[first - start * BLOCK :][: len(x0)]

    def dropped(self, step: int, probability: float) -> Tensor:
        """Which samples lose their label or condition, (B,) bool on the CPU (classifier-free guidance).

        One number decides about both, so that what is dropped with equal probability is dropped together.
        """
        return torch.rand(self.batch_size, generator=self.generator("label", step)) < probability

    def levels(self, step: int, largest: float) -> Tensor:
        """Noise levels of condition images, (B,) float32 on the CPU, uniform on [0, largest]."""
        return largest * torch.rand(self.batch_size, generator=self.generator("condition-level", step))

    def network_seed(self, step: int, first: int = 0) -> int:
        """The seed of torch's global generator, which dropout uses, for the micro-batch that starts at a row."""
        return key(self.seed, "network", step, first)

    def generator(self, use: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one use in one step."""
        return torch.Generator(device).manual_seed(key(self.seed, use, *numbers))
