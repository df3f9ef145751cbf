r"""Moving averages of a network: the weights that samples are drawn with.

    average <- average + (1 - decay_k) (weights - average)        after the k-th update of the weights.

Two families of decays:

    exponential   decay_k = min(decay, (1 + k) / (10 + k)). The warm-up forgets the random start: with a constant
                  decay of 0.999 it would still make up 1/e of the average after 1,000 steps.
    power         decay_k = (1 - 1/k)^(gamma + 1) (Karras et al. 2024, Analyzing and improving the training dynamics
                  of diffusion models, section 3.1). The weights of step j then count as
                  (j^(gamma+1) - (j-1)^(gamma+1)) / k^(gamma+1): the average keeps its shape during training, has
                  forgotten the start after one step, and its width is a fixed share of the training time, which
                  ``gamma_of`` turns into gamma.

A run may keep several at once. `posthoc` makes averages of other widths from saved power averages.

torch.optim.swa_utils.AveragedModel does the same with a copy of the module; it reads its step
counter from the device at every update, which synchronises a GPU, and keeps the average in the
dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from solvers.errors import InputError

LARGEST_WIDTH = 0.288  # 1 / sqrt(12) is the width of the uniform average, gamma = 0


def decay_at(k: int, decay: float) -> float:
    """The decay of the k-th update, min(decay, (1 + k) / (10 + k)).

    >>> [round(decay_at(k, 0.999), 4) for k in (1, 10, 100, 100_000)]
    [0.1818, 0.55, 0.9182, 0.999]
    """
    return min(decay, (1 + k) / (10 + k))


def gamma_of(width: float) -> float:
    """The gamma of a power average whose standard deviation is this share of the training time.

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (Karras et al. 2024, section 3.1).

    Raises:
        ValueError: a width outside (0, 0.288].

    >>> round(gamma_of(0.1), 2), round(gamma_of(0.05), 2)
    (6.94, 16.97)
    """
    if not 0 < width <= LARGEST_WIDTH:
        raise InputError(f"the width of an average lies in (0, {LARGEST_WIDTH}] of the training time; got {width}")
    s = width**-2  # the equation is the cubic gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s = 0
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def power_decay(width: float) -> Callable[[int], float]:
    """The decays of a power average.

    >>> decay = power_decay(0.1)
    >>> decay(1), round(decay(1000), 5)
    (0.0, 0.99209)
    """
    exponent = gamma_of(width) + 1
    return lambda k: (1 - 1 / k) ** exponent


class EMA:
    """The moving average of everything in a network's state: parameters and persistent buffers.

    Floating-point tensors are averaged in float32 (float64 for float64 ones); others are copied.

    Args:
        network: the network in training, on its final device.
        decay: the largest decay, in [0, 1), or a function k -> decay of the k-th update.

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

    def __init__(self, network: nn.Module, decay: float | Callable[[int], float] = 0.999) -> None:
        if not callable(decay) and not 0 <= decay < 1:
            raise InputError(f"the decay of an average lies in [0, 1); got {decay}")
        self._decay_at = decay if callable(decay) else lambda k: decay_at(k, decay)
        self._source: dict[str, Tensor] = network.state_dict(keep_vars=True)
        self._average: dict[str, Tensor] = {}
        for name, value in self._source.items():
            master = torch.promote_types(value.dtype, torch.float32)
            kind = master if value.is_floating_point() else value.dtype
            self._average[name] = value.detach().to(dtype=kind, copy=True)
        # Listed once, since listing the state of a network takes longer than averaging a small network.
        floating = [name for name, value in self._source.items() if value.is_floating_point()]
        self._weights = [self._source[name].detach() for name in floating]
        self._masters = [self._average[name] for name in floating]
        self._same_type = all(w.dtype == m.dtype for w, m in zip(self._weights, self._masters, strict=True))
        self._copied = [name for name in self._source if name not in set(floating)]

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Add the weights after the k-th update to the average, k = 1, 2, ..."""
        weights = self._weights
        if not self._same_type:
            weights = [w.to(m.dtype) for w, m in zip(weights, self._masters, strict=True)]
        torch._foreach_lerp_(self._masters, weights, 1 - self._decay_at(k))
        for name in self._copied:
            self._average[name].copy_(self._source[name])

    def state(self) -> dict[str, Tensor]:
        """The average by the names of ``network.state_dict()``; the tensors are not copied."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load an average saved from ``state()``, bit for bit.

        Raises:
            ValueError: names or shapes differ from the network's.
        """
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in self._average.items()}:
            raise InputError("the saved average belongs to another network: names or shapes differ")
        for name, value in state.items():
            self._average[name].copy_(value)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the network computes with the average; its weights are restored afterwards."""
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
