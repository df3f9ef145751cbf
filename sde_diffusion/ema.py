r"""An exponential moving average of a network: the weights that samples are drawn with.

    average <- average + (1 - decay_k) (weights - average),   decay_k = min(decay, (1+k) / (10+k)),

after the k-th update of the weights. The warm-up forgets the random start: with a constant decay of
0.999 it would still make up 1/e of the average after 1,000 steps.

torch.optim.swa_utils.AveragedModel does the same with a copy of the module; it reads its step
counter from the device at every update, which makes a GPU wait, and keeps the average in the type
of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_at(k: int, decay: float) -> float:
    """The decay of the k-th update, min(decay, (1 + k) / (10 + k)).

    >>> [round(decay_at(k, 0.999), 4) for k in (1, 10, 100, 100_000)]
    [0.1818, 0.55, 0.9182, 0.999]
    """
    return min(decay, (1 + k) / (10 + k))


class EMA:
    """The moving average of everything in a network's state: parameters and persistent buffers.

    Floating-point tensors are averaged in float32 (float64 for float64 ones); others are copied.

    Args:
        network: the network that is trained; on its final device already.
        decay: the largest decay, in [0, 1).

    Raises:
        ValueError: decay outside [0, 1).

    >>> network = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(network.weight)
    >>> ema = EMA(network, decay=0.999)
    >>> _ = nn.init.ones_(network.weight)
    >>> ema.update(1)
    >>> ema.state()["weight"]  # 1 - 2 / 11
    tensor([[0.8182]])
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average lies in [0, 1); got {decay}")
        self.decay = decay
        self._source: dict[str, Tensor] = network.state_dict(keep_vars=True)
        self._average: dict[str, Tensor] = {}
        for name, value in self._source.items():
            master = torch.promote_types(value.dtype, torch.float32)
            kind = master if value.is_floating_point() else value.dtype
            self._average[name] = value.detach().to(dtype=kind, copy=True)
        # Fixed once: listing the state of a network takes longer than averaging a small one.
        floating = [name for name, value in self._source.items() if value.is_floating_point()]
        self._weights = [self._source[name].detach() for name in floating]
        self._masters = [self._average[name] for name in floating]
        self._same_type = all(w.dtype == m.dtype for w, m in zip(self._weights, self._masters, strict=True))
        self._copied = [name for name in self._source if name not in set(floating)]

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Average in the weights after their k-th update, k = 1, 2, ..."""
        weights = self._weights
        if not self._same_type:
            weights = [w.to(m.dtype) for w, m in zip(weights, self._masters, strict=True)]
        torch._foreach_lerp_(self._masters, weights, 1 - decay_at(k, self.decay))
        for name in self._copied:
            self._average[name].copy_(self._source[name])

    def state(self) -> dict[str, Tensor]:
        """The average under the names of ``network.state_dict()``: the tensors, not copies."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take an average saved from ``state()``, bit for bit.

        Raises:
            ValueError: the names or shapes are those of another network.
        """
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in self._average.items()}:
            raise ValueError("the saved average belongs to another network: names or shapes differ")
        for name, value in state.items():
            self._average[name].copy_(value)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network computes with the average; its own weights return afterwards."""
        own = {name: value.detach().clone() for name, value in self._source.items()}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._source.items():
            value.copy_(values[name])
