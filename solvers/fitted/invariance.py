r"""Corrections that make a mixture of tables independent of the mean and scale of the data and of the path's start.

Fitted rows x_{i+1} = a_i x_i + sum_j b_ij D_j do not keep constants: the weight that is missing,

    m_i = alpha_{i+1} - a_i alpha_i - sum_j b_ij,

is multiplied by a centre of the data c, so that data + v give samples + v. c is the mean of the first denoised sample
D_0 over the entries of each channel, from the second row on that of D_1, since D_0 of a network is far off where the
noise is large. Vectors have no channels, and c = D_0. Features of the gates are those of D - c (with the usual mean
of images, 1/2, added to the size of D - c where there are channels), in units of the data's scale.

A path that starts at rho_T below the first levels of a table of N steps takes its last N - k rows: the start stands
for the k-th level, with the constant history D_0, D_0, ..., and unknown features are at their mean in the fit. The
first of these rows is z_{k+1} = D_0 + a_k rho_k / rho_T (z_T - D_0). Where rho_T and rho_k are far apart, z_{k+1} is
corrected by the exponential Adams method of two values before D_{k+1} is used.

No row moves x further from the step of the exponential Adams method with the same values (``safe`` below) than a
multiple of the last changes of D (``TrustRegion``),

    |x_{i+1} - safe| <= C_i (sum_j w_j) max(|D_i - D_{i-1}|, |D_{i-1} - D_{i-2}|),

where w are the weights of that method: on models that are answered by far smaller corrections than the fitted ones,
such as narrow data, and exactly on a point mass, that method runs. C is four times the largest value on smooth models.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.exponential.adams import Update
from solvers.fitted.gating import GateFeatures, log_rms

_USUAL_MEAN = 0.5  # of images, in units of the data's scale
_NOISY = 60.0  # rho of the start, in units, from which D_0 of a network is not taken for the whole missing weight


class Invariance(NamedTuple):
    """The application of a mixture to a path.

    Attributes:
        steps: N, the number of rows of the whole table.
        lead: k, the number of its first rows that are left out.
        exact: whether the start is near its level, so that the first row's step is the fitted one; else that step is
            corrected by the exponential Adams method once D_1 is known.
        unit: scale of x and D, in units of that of the fitted models; the path is that of x / unit
            (``solvers.fitted.data_units``).
    """

    steps: int
    lead: int = 0
    exact: bool = True
    unit: float = 1.0

    def limit(self, row: int) -> float:
        """C_i of a row of this path, from 1 on."""
        if row + self.lead == self.steps - 1:
            return 2.0
        return max(25.0, self.steps**2) if row == 1 else max(4.0, 0.16 * self.steps**2)

    def after(self, seen: GateFeatures, x: Tensor, value: Tensor, alpha: float, sigma: float) -> GateFeatures:
        """The features with one evaluation more, at x_t = x; see ``GateFeatures.after``."""
        if seen.start is None:
            centre = _channel_mean(value)
            size = self.unit * (sigma if value.ndim == 2 else math.hypot(alpha, sigma))
            start = log_rms(size, x - alpha * centre)
            seen = seen._replace(start=start, centre=centre)
            if seen.number == 0:
                return seen._replace(values=(value,))
        elif seen.number == 1 and value.ndim > 2:
            seen = seen._replace(centre=_channel_mean(value))
        assert seen.centre is not None and seen.start is not None
        parts = [value - seen.centre]
        if seen.number > 1 and seen.values:
            parts.append(value - seen.values[0])
        residual = log_rms(sigma * self.unit, x.sub(value, alpha=alpha)) - seen.start
        now = torch.cat([residual, *(log_rms(self.unit, part) for part in parts)], 1)
        if value.ndim > 2:
            now[:, 1] = torch.log(torch.exp(2 * now[:, 1]) + _USUAL_MEAN**2) / 2
        if not seen.values:
            residuals, changes = min(seen.number, 3), min(seen.number - 1, 2)
            unknown = now.new_full((len(now), 1), torch.nan)
            if value.ndim == 2:
                now[:, :1] = unknown
            now = torch.cat([now[:, :1], *[unknown] * (residuals - 1), now[:, 1:], *[unknown] * changes], 1)
            return seen._replace(values=(value,), features=now)
        return seen._replace(values=(value, *seen.values), features=seen.joined(now))

    def completed(
        self, row: Tensor, seen: GateFeatures, scales: tuple[float, float, float], number: int
    ) -> tuple[Tensor, Tensor | None]:
        """A row and the weight of the centre that it needs to keep constants; None where a value has it.

        Args:
            row: (1 or B, 1 + weights).
            seen: after the evaluation.
            scales: alpha and sigma at the start of the step, and alpha at its end.
            number: of the row on this path.
        """
        alpha, sigma, end = scales
        known = len(seen.values)
        if row.shape[1] - 1 > known:  # the first value stands for those before it
            row = torch.cat([row[:, :known], row[:, known:].sum(1, keepdim=True)], 1)
        missing = end - alpha * row[:, 0] - row[:, 1:].sum(1)
        low = number == 0 and sigma < _NOISY * alpha
        if low or (number == 0 and seen.values[0].ndim == 2):
            row = row.clone()
            row[:, -1] += missing
            return row, None
        return row, missing


def plain_row(
    row: Tensor, missing: Tensor | None, centre: int, lower: Update, share: Tensor | None, number: int
) -> Tensor:
    """The coefficients of a step as a plain row of x and all values, newest first: (1 or B, 2 + number).

    Args:
        row: the completed row.
        missing: weight of the centre.
        centre: index of the value whose mean it is.
        lower: the safe step.
        share: of the row, the rest is that of the safe step; None for 1.
        number: of the row on its path.
    """
    whole = row.new_zeros(len(row), 2 + number)
    whole[:, : row.shape[1]] = row
    if missing is not None:
        whole[:, 1 + centre] += missing
    if share is None:
        return whole
    safe = row.new_zeros(1, 2 + number)
    safe[0, : 1 + len(lower.weights)] = torch.tensor([lower.decay, *lower.weights], dtype=row.dtype, device=row.device)
    return safe + share.to(row.dtype)[:, None] * (whole - safe)


def per_sample(weight: Tensor, x: Tensor) -> Tensor:
    """Weights (1 or B,) in the shape of the samples x."""
    return weight.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def within(x: Tensor, safe: Tensor, gain: float, values: tuple[Tensor, ...], limit: float) -> tuple[Tensor, Tensor]:
    """x, moved towards the safe step until it is within the trust region, and the share of the move that remains.

    Args:
        x: the step of the table.
        safe: that of the exponential method.
        gain: sum of the weights of the latter.
        values: denoised samples, newest first, two at least.
        limit: C of the step.

    >>> one = torch.ones(1, 1)
    >>> within(3 * one, one, 1.0, (one, one), 4.0)[0], within(3 * one, one, 1.0, (one, 0.75 * one), 4.0)
    (tensor([[1.]]), (tensor([[2.]]), tensor([0.5000])))
    """
    apart = x - safe
    changes = _norms(values[0] - values[1])
    if len(values) > 2:
        changes = torch.maximum(changes, _norms(values[1] - values[2]))
    dtype = changes.dtype
    share = (limit * gain * changes / _norms(apart).clamp_min_(torch.finfo(dtype).tiny)).clamp_max_(1)
    return safe + per_sample(share, x) * apart, share


def _norms(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=dtype)


def _channel_mean(value: Tensor) -> Tensor:
    """The mean of each channel; vectors as they are."""
    return value if value.ndim == 2 else value.mean(tuple(range(2, value.ndim)), keepdim=True)
