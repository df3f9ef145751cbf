"""Clouds as volumes, for the three-dimensional U-Net: voxels with a point are 1 and the others -1."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.points.metrics import checked_clouds
from solvers.errors import InputError, require_whole


def to_voxels(clouds: Tensor, side: int = 16, extent: float = 1.2) -> Tensor:
    """Return clouds as volumes (B, 1, side, side, side), axes x, y, z.

    Args:
        clouds: (B, 3, N).
        side: voxels along an axis.
        extent: half the length of the cube around the origin; points outside are left out.

    Raises:
        ValueError: clouds of another shape, or a side or extent that is not positive.

    >>> cube = to_voxels(torch.tensor([[[0.5], [-0.5], [-0.5]]]), side=2, extent=1.0)
    >>> cube[0, 0, 1, 0, 0].item(), cube.sum().item()
    (1.0, -6.0)
    """
    clouds = checked_clouds(clouds, "clouds")
    require_whole("side", side, 1, 256)
    if clouds.shape[1] != 3 or not extent > 0:
        raise InputError(f"voxels are of clouds (B, 3, N) in a cube of positive extent; got {tuple(clouds.shape)}")
    place = ((clouds / extent + 1) / 2 * side).floor().long()
    inside = ((place >= 0) & (place < side)).all(1)
    flat = (place[:, 0] * side + place[:, 1]) * side + place[:, 2]
    out = torch.full((len(clouds), side**3 + 1), -1.0, device=clouds.device)
    out.scatter_(1, torch.where(inside, flat, side**3), 1.0)
    return out[:, :-1].reshape(-1, 1, side, side, side)
