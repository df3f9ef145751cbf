r"""The maximum mean discrepancy of a kernel, and the kernel distance KID.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),

estimated without bias by leaving out the pairs of a sample with itself (Gretton et al. 2012, eq. 3). With the kernel
(x.y / d + 1)^3 it is KID (Binkowski et al. 2018, eq. 4): unlike the Frechet distance it has no bias for any n.

The standard error is the jackknife over both sets. Leaving out sample i changes the means by its row sums of k alone,
so it costs little next to the n^2 kernel values. At equal laws, where the estimator degenerates, the jackknife is too
large by up to sqrt(2) (Efron & Stein 1981): it errs on the safe side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import Estimate
from solvers.errors import InputError

Kernel = Callable[[Tensor, Tensor], Tensor]
_ROWS, _VALUES = 1024, 2**22  # of a block of a matrix of all pairs: at most 32 MiB in float64


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 of all pairs of (n, d) and (m, d), (n, m).

    >>> cubic_kernel(torch.ones(1, 4), torch.ones(1, 4))
    tensor([[8.]])
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(width: float) -> Kernel:
    """exp(-|x - y|^2 / (2 width^2)).

    >>> gaussian_kernel(1.0)(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]])).round(decimals=4)
    tensor([[1.0000, 0.1353]])
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        square = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)
        return torch.exp(square.clamp_min(0) / (-2 * width**2))

    return kernel


def median_width(x: Tensor, y: Tensor, most: int = 1000) -> float:
    """The median distance of samples of both sets, the usual width of a Gaussian kernel (Gretton et al. 2012, 8)."""
    pooled = torch.cat([x[:most], y[:most]])
    distances = torch.nn.functional.pdist(pooled)
    # If most samples are equal the median is uninformative on the others; if all are equal, any width is valid.
    return float(distances.median()) or float(distances.mean()) or 1.0


def kid(a: Tensor, b: Tensor) -> Estimate:
    """The kernel inception distance: MMD^2 with ``cubic_kernel``; on any features.

    Args:
        a: features (n, ...).
        b: features (m, ...).

    Returns:
        The estimate, negative about half of the time when the laws are equal, and its standard error.

    Raises:
        ValueError: as ``squared_mmd``.

    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> same, other = kid(x[:100], x[100:]), kid(x[:100], x[100:] + 1)
    >>> abs(same.value) < 2 * same.standard_error, other.value > 4 * other.standard_error
    (True, True)
    """
    return squared_mmd(a, b, cubic_kernel)


def squared_mmd(a: Tensor, b: Tensor, kernel: Kernel | None = None) -> Estimate:
    """The unbiased estimate of MMD^2 with its jackknife standard error.

    Args:
        a: samples or features (n, ...).
        b: likewise (m, ...).
        kernel: kernel of all pairs of (n, d) and (m, d); Gaussian with ``median_width`` by default.

    Raises:
        ValueError: other dimensions, fewer than 3 samples, or values that are not finite.

    >>> x, y = torch.zeros(3, 1), torch.ones(3, 1)
    >>> round(squared_mmd(x, y, gaussian_kernel(1.0)).value, 6)  # 2 - 2 exp(-1/2)
    0.786939
    """
    x, y = pair(a, b, least=3)
    kernel = gaussian_kernel(median_width(x, y)) if kernel is None else kernel
    n, m = len(x), len(y)
    xx, yy, xy = torch.zeros(n).double(), torch.zeros(m).double(), torch.zeros(n).double()
    yx = torch.zeros(m).double()
    for own, other, total in ((x, x, xx), (y, y, yy)):
        for start in range(0, len(own), size := block(len(other))):
            rows = kernel(own[start : start + size], other)
            total[start : start + size] = rows.sum(1) - rows.diagonal(start)
    for start in range(0, n, size := block(m)):
        rows = kernel(x[start : start + size], y)
        xy[start : start + size] = rows.sum(1)
        yx += rows.sum(0)
    within_x, within_y, across = (float(total.sum()) for total in (xx, yy, xy))
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    without_x = (within_x - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (across - xy) / ((n - 1) * m)
    without_y = (within_y - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (across - yx) / (n * (m - 1))
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return Estimate(value, float(variance.sqrt()))


def block(columns: int) -> int:
    """Number of rows of a block of a matrix, so that memory does not grow with the number of samples.

    >>> block(1000), block(50_000)
    (1024, 83)
    """
    return max(1, min(_ROWS, _VALUES // columns))


def pair(a: Tensor, b: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of vectors, float64 on the CPU, that can be compared.

    Raises:
        ValueError: other dimensions, fewer samples than ``least``, or values that are not finite.
    """
    x, y = (v.detach().flatten(1).double().cpu() for v in (a, b))
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features of {x.shape[1]} and {y.shape[1]} dimensions have no distance")
    if min(len(x), len(y)) < least:
        raise InputError(f"expected {least} samples or more in each set; got {len(x)} and {len(y)}")
    for v in (x, y):
        bad = ~v.isfinite().all(1)
        if bool(bad.any()):
            raise InputError(
                f"{int(bad.sum())} of {len(v)} feature vectors are not finite; the first is {int(bad.nonzero()[0])}"
            )
    return x, y
