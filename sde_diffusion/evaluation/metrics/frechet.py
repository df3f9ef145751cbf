r"""The Frechet distance between Gaussian fits (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (F' C_2 F)^1/2,      F F' = C_1.

Any factor F will do, because F' C_2 F has the eigenvalues of C_1 C_2, and it is symmetric: a Cholesky factor, or the
eigenvectors times the roots of the eigenvalues where C_1 is singular. One symmetric eigendecomposition in float64 then
gives the trace, real also for singular covariances. In 2048 dimensions it takes 2 s on one core, and 7 s with the
symmetric root as the factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.moments import Moments
from solvers.errors import InputError


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments, *, allow_few: bool = False) -> float:
    """The squared Frechet distance between the Gaussian fits of two sets; "FID" on Inception features.

    Args:
        a: features (n, ...), or their ``Moments``.
        b: likewise.
        allow_few: accept fewer samples than dimensions, where the covariance is singular and the distance
            biased.

    Returns:
        The squared distance, in squared units of the features. It is biased upwards by about d / n: compare
        only figures with equal n.

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


def _factor(c: Tensor) -> Tensor:
    """Some F with F F' = c."""
    factor, failed = torch.linalg.cholesky_ex(c)
    if not bool(failed):
        return factor
    values, vectors = torch.linalg.eigh(c)  # singular
    return vectors * values.clamp_min(0).sqrt()
