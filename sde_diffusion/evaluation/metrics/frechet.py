r"""The Frechet distance between Gaussian fits (Dowson & Landau 1982; Heusel et al. 2017, eq. 6), and its bias.

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (F' C_2 F)^1/2,      F F' = C_1.

Any factor F is valid, because F' C_2 F has the eigenvalues of C_1 C_2, and it is symmetric: a Cholesky factor, or the
eigenvectors times the roots of the eigenvalues where C_1 is singular. One symmetric eigendecomposition in float64 then
gives the trace, real also for singular covariances. In 2048 dimensions it takes 2 s on one core, and 7 s with the
symmetric root as the factor.

The distance of a set of n samples to a fixed law is too large by about d^2 / (4 n) covariances. To second order in the
errors of mean and covariance, with X = x - m, F F' = C_2, U' F' C F U = diag(lambda), y = U' F' X and s = lambda^(1/2),

    d^2(m, C) = d^2 + mean_k phi(x_k) + mean_kl h(x_k, x_l),

    phi(x)   = 2 (m - m_2).X + |X|^2 - sum_i y_i^2 / s_i,    less its mean,
    h(x, x') = X.X' + 1/2 sum_ij w_ij E_ij(x) E_ij(x'),
    E_ij(x)  = y_i y_j - lambda_i delta_ij,      w_ij = 1 / (s_i s_j (s_i + s_j)),

so the bias is E h(x, x) / n = [tr C + 1/2 sum_ij w_ij Var(y_i y_j)] / n, which the samples' own moments of order 4
give, and the variance Var(phi) / n + 2 E h^2 / n^2: its second term decides where the laws nearly agree and phi is 0.
Var(phi) is nearly a multiple of d^2; the multiple is taken from the samples' own distance, bias included, where both
are far above their noise. The variance then depends on the true distance, and so does the interval
(``Estimate.growth``): one standard error for all would hold in 99.7 % of sets where the laws agree and in 92 % where
they are a little apart. What the expansion leaves out is d / (2 n) of the bias (measured at n / d from 2 to 100); it is
subtracted too, and all of it counted as uncertain. Chong & Forsyth 2020 extrapolate in 1/n instead, from distances of
subsets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import Estimate
from sde_diffusion.evaluation.metrics.moments import Moments
from solvers.errors import InputError

_CHUNK = 4096


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments, *, allow_few: bool = False) -> float:
    """The squared Frechet distance between the Gaussian fits of two sets; "FID" on Inception features.

    Args:
        a: features (n, ...), or their ``Moments``.
        b: likewise.
        allow_few: accept fewer samples than dimensions, where the covariance is singular and the distance
            biased.

    Returns:
        The squared distance, in squared units of the features. It is biased upwards by about d^2 / (4 n) covariances:
        compare only figures with equal n, or see ``unbiased_frechet_distance``.

    Raises:
        ValueError: fewer samples than dimensions, other dimensions, or features that are not finite.

    >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + 2.0), 6)  # 3 dimensions, each 2 apart
    12.0
    """
    a, b = (m if isinstance(m, Moments) else Moments.of(m) for m in (a, b))
    if len(a.mean) != len(b.mean):
        raise InputError(f"features of {len(a.mean)} and {len(b.mean)} dimensions have no distance")
    few = min(a.n, b.n)
    if few < len(a.mean) and not allow_few:
        raise InputError(
            f"{few} samples in {len(a.mean)} dimensions: the covariance is singular and the distance mostly bias; "
            "use more samples, fewer features, or KID, which has no bias "
            "(in Python allow_few=True computes it all the same)"
        )
    factor = _factor(a.covariance)
    cross = torch.linalg.eigvalsh(factor.T @ b.covariance @ factor).clamp_min(0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    total = gap + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(total), 0.0)


def unbiased_frechet_distance(samples: Tensor, reference: Moments) -> Estimate:
    """The squared Frechet distance of a law to a reference, from samples of the law, without the bias of their number.

    Args:
        samples: features (n, ...), independent.
        reference: the reference, taken as exact.

    Returns:
        The estimate, which may be negative where the laws nearly agree, its standard error, and the bias that was
        subtracted: their sum is ``frechet_distance``.

    Raises:
        ValueError: as ``frechet_distance``.

    >>> x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = unbiased_frechet_distance(x, Moments(10**6, torch.zeros(8).double(), 999_999 * torch.eye(8).double()))
    >>> low, high = found.interval
    >>> round(found.value + found.bias, 3), low < 0 < high < 0.1
    (0.071, True)
    """
    moments = Moments.of(samples)
    distance = frechet_distance(moments, reference)
    x = samples.detach().flatten(1)
    n, c = len(x), moments.covariance
    factor = _factor(reference.covariance)
    values, vectors = torch.linalg.eigh(factor.T @ c @ factor)
    kept = values > values[-1] * 1e-12  # directions in which one of the laws has no extent have no second order
    values, project = values[kept], factor @ vectors[:, kept]
    root = values.sqrt()
    fourth, phi = torch.zeros(len(root), len(root), dtype=torch.float64), []
    for part in torch.split(x, _CHUNK):
        gap = part.double().cpu() - moments.mean
        square = (gap @ project).square()
        fourth += square.T @ square
        phi.append(2 * gap @ (moments.mean - reference.mean) + gap.square().sum(1) - (square / root).sum(1))
    weights = 1 / (torch.outer(root, root) * (root[:, None] + root))
    terms = weights * (fourth / n - values.square().diag())
    rank = len(root)
    left = rank / (2 * n)
    bias = float(c.trace() + terms.sum() / 2) / n * (1 + left)
    quadratic = 2 * float(c.square().sum() + terms.square().sum() / 2 - terms.diagonal().square().sum() / 4) / n**2
    growth = float(torch.cat(phi).var()) / n / distance if distance > 0 else 0.0
    variance = quadratic + (bias * left / (1 + left)) ** 2 + growth * max(distance - bias, 0.0)
    return Estimate(distance - bias, math.sqrt(variance), bias, growth)


def _factor(c: Tensor) -> Tensor:
    """Some F with F F' = c."""
    factor, failed = torch.linalg.cholesky_ex(c)
    if not bool(failed):
        return factor
    values, vectors = torch.linalg.eigh(c)  # singular
    return vectors * values.clamp_min(0).sqrt()
