r"""A differentiable picture of a cloud: points become soft discs, seen from far away.

The cloud is turned about the vertical axis by an angle a, and the coordinates across (y') and up (z) give the place in
the picture; a pixel at u is

    I(u) = 2 (1 - exp( -c sum_k exp( -|u - p_k|^2 / (2 s^2) ) )) - 1,

-1 where no point is near and up to 1 where many are. The picture is smooth in the points, so that a gradient of a score
on pictures moves them (``distillation.dreamfusion``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from solvers.errors import InputError, require_whole


def render(
    clouds: Tensor, angle: float, side: int = 8, *, radius: float = 0.6, density: float = 1.0, extent: float = 1.2
) -> Tensor:
    """Return pictures (B, 1, side, side) in [-1, 1] of clouds, seen along x after a turn about z.

    Args:
        clouds: (B, 3, N).
        angle: the turn, in rad.
        side: pixels along an axis.
        radius: s, in pixels.
        density: c, what one point adds at its centre.
        extent: half the length of the cube around the origin that fills the picture.

    Raises:
        ValueError: clouds of another shape, or a radius, density or extent that is not positive.

    >>> top = torch.tensor([[[0.0], [0.0], [0.9]]])
    >>> render(top, angle=0.0, side=4, extent=1.2)[0, 0].argmax().item() // 4       # the first row is the highest
    0
    """
    if clouds.ndim != 3 or clouds.shape[1] != 3:
        raise InputError(f"a picture is of clouds (B, 3, N), coordinates first; got shape {tuple(clouds.shape)}")
    require_whole("side", side, 1, 1024)
    if not min(radius, density, extent) > 0:
        raise InputError(
            f"radius, density and extent of a picture are positive; got {radius:g}, {density:g}, {extent:g}"
        )
    turn = torch.as_tensor(angle, dtype=clouds.dtype, device=clouds.device)
    across = turn.sin() * clouds[:, 0] + turn.cos() * clouds[:, 1]
    half = side / 2
    x, y = (half + across / extent * half), (half - clouds[:, 2] / extent * half)
    pixels = torch.arange(side, dtype=clouds.dtype, device=clouds.device) + 0.5
    rows = torch.exp(-((y[:, :, None] - pixels) ** 2) / (2 * radius**2))
    columns = torch.exp(-((x[:, :, None] - pixels) ** 2) / (2 * radius**2))
    light = torch.einsum("bnr,bnc->brc", rows, columns)
    return 2 * (1 - torch.exp(-density * light))[:, None] - 1
