r"""Features of the evaluations of a run, and the network that turns them into weights of the experts of a mixture.

With z = x / alpha and rho = sigma / alpha, after the evaluation D_i = D(x_i, t_i)

    u_i = log rms((z_i - D_i) / rho_i) - log rms(eps),      eps = x_T / sqrt(alpha_T^2 + sigma_T^2),
    n_i = log rms(D_i),         d_i = log rms(D_i - D_{i-1}),

measure the fraction of the noise that is predicted as noise, the size of the denoised sample, and its last change. For
a Gaussian of variances c_k the mean of exp(2 u_i) is that of rho^2 / (c_k + rho^2), a summary of the spectrum of the
data at the noise level of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.errors import StateError

# Features are clamped at this many standard deviations from their mean in the fit.
FAR = 4.0
LEAST = -4.0  # log of the smallest root mean square that counts


class GatingNetwork(NamedTuple):
    """softmax(slopes' clamp((features - centre) / width, -4, 4) + offset): the weights of the experts."""

    centre: tuple[float, ...]
    width: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...]

    @classmethod
    def of(
        cls, centre: Sequence[float], width: Sequence[float], slopes: Sequence[Sequence[float]], offset: Sequence[float]
    ) -> GatingNetwork:
        """The gating network from the lists of a file."""
        return cls(tuple(centre), tuple(width), tuple(map(tuple, slopes)), tuple(offset))

    def __call__(self, features: Tensor) -> Tensor:
        """(B, features) -> (B, kinds), float64.

        >>> gate = GatingNetwork((0.0,), (1.0,), ((1.0, -1.0),), (0.0, 0.0))
        >>> gate(torch.zeros(1, 1, dtype=torch.float64))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
        """
        return self.weights(features, self.on(features.device))

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The parameters on a device, stacked for few operations; the copy is asynchronous."""
        centre, width, slopes, offset = (torch.tensor(c, dtype=torch.float64, device="cpu") for c in self)
        numbers = (-centre / width, 1 / width, slopes, offset)
        return tuple(c.to(device, non_blocking=True) for c in numbers)

    @staticmethod
    def weights(features: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        """The gating network, with existing parameters."""
        start, factor, slopes, offset = numbers
        far = torch.addcmul(start, features, factor).clamp_(-FAR, FAR)
        far.nan_to_num_(0.0)  # a feature that is not known is the mean of the fit
        # Sums, because the rounding of a matrix product would depend on the batch.
        return torch.softmax((far[:, :, None] * slopes).sum(1).add_(offset), 1)


class GateFeatures(NamedTuple):
    """Features of the evaluations so far.

    Attributes:
        number: number of rows done.
        values: predictions of the model, newest first.
        start: log rms(eps), (B, 1).
        features: up to three residuals u_i, the size n_i, up to two changes d_i from the second on, each newest first:
            (B, features) float64.
        row: the coefficients of the last row, or a function that makes them, since a run needs none; see
            ``coefficients``.
        centre: of the data, like a value or with one entry for each channel; see ``solvers.fitted.invariance``.
        apart: the last step minus that of the exponential method, for the error estimate.
        base: x at the start of a path that starts low, until its first step is corrected.
    """

    number: int
    values: tuple[Tensor, ...] = ()
    start: Tensor | None = None
    features: Tensor | None = None
    row: Tensor | Callable[[], Tensor] | None = None
    centre: Tensor | None = None
    apart: Tensor | None = None
    base: Tensor | None = None

    def coefficients(self) -> Tensor:
        """The coefficients of the last row, (B or 1, 1 + weights): decay, then weights, newest value first.

        Raises:
            StateError: no row is done.
        """
        if self.row is None:
            raise StateError("the coefficients are those of the last row, and none is done")
        return self.row if isinstance(self.row, Tensor) else self.row()

    def after(self, x: Tensor, value: Tensor, alpha: Tensor, sigma: Tensor) -> GateFeatures:
        """With one evaluation more, at x_t = x."""
        if self.number == 0:
            return self._replace(values=(value,), start=log_rms(math.hypot(alpha, sigma), x))
        assert self.start is not None
        parts = [x.sub(value, alpha=float(alpha)), value]
        if self.number > 1:  # D at pure noise has no information on the data, and that of a network is far off
            parts.append(value - self.values[0])
        now = log_rms(float(sigma), *parts)
        now[:, :1] -= self.start
        return self._replace(values=(value, *self.values), features=self.joined(now))

    def joined(self, now: Tensor) -> Tensor:
        """The features with the residual, size and change of this evaluation in front of their like."""
        if self.features is None:
            return now
        residuals = min(self.number - 1, 3)
        earlier, changes = self.features[:, : min(residuals, 2)], self.features[:, residuals + 1 : residuals + 2]
        return torch.cat([now[:, :1], earlier, now[:, 1:], changes], 1)


def weighted_sum(row: Tensor, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """decay x + sum_j weights_j values_j, with a row for all samples or one for each.

    Args:
        row: (1 or B, 1 + weights).
        x: (B, ...).
        values: like x, in the order of the weights.
    """
    decay, *weights = row.to(x.dtype).reshape(*row.shape, *(1,) * (x.ndim - 1)).unbind(1)
    out = x * decay
    for value, weight in zip(values, weights, strict=False):
        out.addcmul_(value, weight)
    return out


def log_rms(unit: float, *parts: Tensor) -> Tensor:
    """Log of the root mean square of each sample, the first in units, (B, parts) float64, clamped below at -4."""
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in parts]
    out = torch.stack(norms, 1).to(torch.float64).div_(parts[0][0].numel() ** 0.5)
    out[:, 0] /= unit
    return out.log_().clamp_min_(LEAST)
