r"""Conditioning inputs of the networks: time, and optionally a class label or a context vector.

The time embedding is [cos(w_k u), sin(w_k u)] for frequencies w_k, and a small perceptron maps it to the
conditioning vector of every block (Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B). The range of
the frequencies matters. The marginals of a diffusion change fastest near the data, where t = 1e-4 and t = 2e-4
are different noise levels. With the usual u = t ("sinusoidal"), separating these two takes frequencies up to
1000 rad, which complete 160 periods on [0, 1]. The output of the network oscillates with them, and a solver with
50 steps cannot resolve it. With

    u = log(1 + t / 0.001),      w_k = 1/8 ... 2 rad        ("log")

the same two times are separated and no frequency completes more than 2.2 periods on [0, 1]. Networks train to the
same loss, and every solver has a smaller error to the reference solution: by a factor of 2 at 15 evaluations, and
of 4 to 60 at 20 to 50 (docs/decisions.md). ``default_network`` uses "log".

"sinusoidal" also serves other scalars of order one, such as c_noise = log(rho) / 4 of Karras et al. 2022 (table 1).

A class label adds a learned vector. A label equal to `classes`, or no label, selects one more learned vector, that
of the unconditional model, which classifier-free guidance needs. Every other condition is a context vector: a
linear function of it is added, or a learned vector for "no condition" where its row is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from solvers.errors import InputError, choose


def geometric_frequencies(count: int) -> Tensor:
    """Return `count` angular frequencies in geometric progression from 1 to 1000 rad.

    >>> geometric_frequencies(4)
    tensor([   1.,   10.,  100., 1000.])
    """
    return torch.logspace(0, 3, count)


def gaussian_frequencies(count: int) -> Tensor:
    """Return `count` random angular frequencies 2 pi N(0, 30^2), always the same ones.

    Random Fourier features (Tancik et al. 2020, section 4; Song et al. 2021, appendix C.1). They
    are drawn once, from a generator of their own, and are not trained.

    >>> bool((gaussian_frequencies(8) == gaussian_frequencies(8)).all())
    True
    """
    return 2 * math.pi * 30 * torch.randn(count, generator=torch.Generator().manual_seed(0))


def slow_frequencies(count: int) -> Tensor:
    """Return `count` angular frequencies in geometric progression from 1/8 to 2 rad.

    >>> slow_frequencies(5)
    tensor([0.1250, 0.2500, 0.5000, 1.0000, 2.0000])
    """
    return torch.logspace(-3, 1, count, base=2)


EMBEDDINGS = {"sinusoidal": geometric_frequencies, "fourier": gaussian_frequencies, "log": slow_frequencies}
_LOG_FROM = 1e-3  # the time around which log(1 + t / t_0) turns from linear to logarithmic


class TimeEmbedding(nn.Module):
    """The time embedding [cos(w_k u), sin(w_k u)], (B,) -> (B, features).

    Args:
        features: number of features, even.
        kind: "log" (of the logarithm of the time), or of the time itself with "sinusoidal" (fixed, geometric) or
            "fourier" (random) frequencies w_k.

    Raises:
        ValueError: an odd number of features or an unknown kind.

    >>> TimeEmbedding(8)(torch.tensor([0.0]))
    tensor([[1., 1., 1., 1., 0., 0., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, features: int, kind: str = "sinusoidal") -> None:
        """Build the layers."""
        super().__init__()
        if features < 2 or features % 2:
            raise InputError(f"a time embedding has an even number of features, not {features}")
        frequencies = choose(kind, EMBEDDINGS, "time embedding")(features // 2)
        self.register_buffer("frequencies", frequencies)
        self.kind = kind

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (B, features) of times t, (B,)."""
        if self.kind == "log":
            t = t.sign() * torch.log1p(t.abs() / _LOG_FROM)
        angle = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Condition(nn.Module):
    """The conditioning vector of a network: the embedded time, plus those of a class and a context if given.

    Args:
        features: number of features of the time embedding.
        width: length of the conditioning vector.
        kind: the time embedding, "log", "sinusoidal" or "fourier".
        classes: number of classes; None for a network without labels.
        context: length of the context vector; None for a network without one.

    Raises:
        ValueError: `classes` or `context` below 1, an odd number of features, an unknown kind.

    >>> condition = Condition(8, 16, classes=10)
    >>> t = torch.tensor([0.5])
    >>> bool((condition(t) == condition(t, torch.tensor([10]))).all())      # 10 is "no class"
    True
    """

    def __init__(
        self,
        features: int,
        width: int,
        kind: str = "sinusoidal",
        classes: int | None = None,
        context: int | None = None,
    ) -> None:
        """Build the layers."""
        super().__init__()
        if classes is not None and classes < 1:
            raise InputError(f"classes is {classes}; give a number from 1 up, or None for no labels")
        if context is not None and context < 1:
            raise InputError(f"context is {context}; give the length of the condition vector, or None for none")
        self.classes = classes
        self.time = nn.Sequential(
            TimeEmbedding(features, kind), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.context = None if context is None else nn.Linear(context, width)
        if context is not None:
            self.no_context = nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the vectors (B, width) of times t, (B,), labels, (B,) int64, and contexts, (B, length).

        Raises:
            ValueError: times or labels that are not one per sample, labels for a network without
                classes, labels that are not int64, or (checked on the CPU only, where looking is
                free) outside 0..classes, contexts of another shape or for a network without.
        """
        if t.ndim != 1:
            raise InputError(f"t has shape {tuple(t.shape)}; a network takes one time per sample, (B,)")
        waves, first, activation, second = self.time
        # The waves need the digits of t; the layers may be of 16 bits.
        vector = second(activation(first(waves(t).to(first.weight.dtype))))
        return self._add_label(self._add_context(vector, context), t, label)

    def _add_context(self, vector: Tensor, context: Tensor | None) -> Tensor:
        if self.context is None:
            if context is not None:
                raise InputError("this network was built without a context; call it without one")
            return vector
        if context is None:
            return vector + self.no_context
        if context.shape != (len(vector), self.context.in_features):
            raise InputError(
                f"context has shape {tuple(context.shape)}; expected ({len(vector)}, {self.context.in_features}), "
                "one vector per sample"
            )
        missing = context.isnan().any(1, keepdim=True)
        given = self.context(context.nan_to_num().to(vector.dtype))
        return vector + torch.where(missing, self.no_context, given)

    def _add_label(self, vector: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if self.label is None or self.classes is None:
            if label is not None:
                raise InputError("this network was built without classes; call it without a label")
            return vector
        if label is None:
            return vector + self.label.weight[self.classes]
        if label.shape != t.shape or label.dtype != torch.int64:
            raise InputError(
                f"label is {label.dtype} of shape {tuple(label.shape)}; "
                f"expected int64 of shape {tuple(t.shape)}, one class per sample"
            )
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in label.aminmax()) if len(label) else (0, 0)
            if low < 0 or high > self.classes:
                raise InputError(
                    f"labels run from {low} to {high}; this network has classes "
                    f"0 to {self.classes - 1}, and {self.classes} for no class"
                )
        return vector + self.label(label)


def check_call(x: Tensor, t: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a batch that is not (B, *shape) with one time per sample.

    Raises:
        ValueError: the shape of x or the number of times differs; the message says what was
            expected.

    >>> check_call(torch.zeros(2, 3), torch.zeros(2), (4,))
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: x has shape (2, 3); this network takes (B, 4)
    """
    if x.shape[1:] != shape:
        expected = ", ".join(str(size) for size in ("B", *shape))
        raise InputError(f"x has shape {tuple(x.shape)}; this network takes ({expected})")
    if t.shape != x.shape[:1]:
        raise InputError(f"t has shape {tuple(t.shape)}; expected one time per sample, ({len(x)},)")
