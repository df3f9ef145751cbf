r"""The Frechet distance between Gaussian fits (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^1/2 C_2 C_1^1/2)^1/2

The matrix in the last trace is symmetric, so both roots come from symmetric eigendecompositions in float64:
always real, also for singular covariances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.metrics.moments import Moments


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
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions have no distance")
    few = min(a.n, b.n)
    if few < len(a.mean) and not allow_few:
        raise ValueError(
            f"{few} samples in {len(a.mean)} dimensions: the covariance is singular and the distance mostly bias; "
            "use more samples or fewer features, or pass allow_few=True"
        )
    root = _root(a.covariance)
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    total = gap + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(total), 0.0)


def _root(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
