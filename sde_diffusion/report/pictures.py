"""Pictures: grids of images and clouds of points.

Samples live in about [-1, 1]; files hold bytes. `to_uint8` is the only place where one becomes the
other, so that a figure, a saved array and a metric agree on every pixel.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.data.pixels import to_uint8
from sde_diffusion.files.writing import write_file
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VISIBLE = 64  # pixels: small images are enlarged until their longer side is about this


def image_grid(x: Tensor, *, columns: int | None = None, scale: int | None = None, gap: int = 2) -> Image.Image:
    """Return images side by side, row by row, on mid-grey.

    Args:
        x: (B, C, H, W) in [-1, 1]; one channel is grey, three are RGB.
        columns: images per row; None makes the grid about square.
        scale: each pixel becomes scale x scale pixels; None enlarges small images to about 64
            pixels.
        gap: pixels between images and around them.

    Raises:
        ValueError: another shape, no images, values that are not finite, a size below 1.

    >>> image_grid(torch.zeros(10, 1, 8, 8)).size              # 4 x 3 images of 8 * 8 pixels
    (266, 200)
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; a grid shows images (B, 1 or 3, H, W)")
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = max(1, VISIBLE // max(height, width)) if scale is None else scale
    if columns < 1 or scale < 1 or gap < 0:
        raise InputError(f"columns {columns}, scale {scale}, gap {gap}: expected columns and scale from 1 up")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    pixels = to_uint8(x).cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tall, wide = height * scale + gap, width * scale + gap
    canvas = torch.full((rows * tall + gap, columns * wide + gap, channels), 128, dtype=torch.uint8)
    for k, image in enumerate(pixels):
        top, left = gap + k // columns * tall, gap + k % columns * wide
        canvas[top : top + height * scale, left : left + width * scale] = image.permute(1, 2, 0)
    return Image.fromarray((canvas[..., 0] if channels == 1 else canvas).numpy())


def stretched(x: Tensor) -> Tensor:
    """Return images of values in any units with their 1st percentile black, -1, and their 99th white, 1.

    Args:
        x: (B, ...); values that reach from about -1 to about 1 already are not scaled.

    >>> stretched(torch.tensor([200.0, 300.0, 400.0])).tolist(), stretched(torch.tensor([-1.0, 0.3, 1.0])).tolist()
    ([-1.0, 0.0, 1.0], [-1.0, 0.30000001192092896, 1.0])
    """
    values = x.detach().double().flatten().sort().values
    low, high = float(values[len(values) // 100]), float(values[-1 - len(values) // 100])
    if (-1.2 < low < -0.5 and 0.5 < high < 1.2) or not low < high:
        return x
    return (2 * (x.double() - low) / (high - low) - 1).to(x.dtype)


def save_grid(path: str | os.PathLike[str], x: Tensor, *, columns: int | None = None, scale: int | None = None) -> None:
    """Write `image_grid(x)` to a PNG file.

    Raises:
        ValueError: as `image_grid`.
        OSError: the file cannot be written.
    """
    save_image(path, image_grid(x, columns=columns, scale=scale))


def save_image(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Write an image to a PNG file, whole or not at all.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_file(Path(path), content.getvalue())


def scatter(path: str | os.PathLike[str], points: Tensor, reference: Tensor | None = None) -> None:
    """Write ``points_figure`` to a PNG file.

    Raises:
        ValueError: another shape, or values that are not finite.
        OSError: the file cannot be written.
    """
    save_figure(path, points_figure(points, reference), dpi=100)


def points_figure(points: Tensor, reference: Tensor | None = None) -> Figure:
    """Return a figure of 2-D points over reference points in grey.

    Args:
        points: (B, 2).
        reference: (N, 2) to compare with, drawn first; the axes are those of the reference, and the title counts the
            points outside of them.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(aspect="equal")
    for cloud, colour in ((reference, "0.75"), (points, "tab:blue")):
        if cloud is None:
            continue
        if cloud.ndim != 2 or cloud.shape[1] != 2 or not cloud.isfinite().all():
            raise InputError(f"expected finite points (B, 2); got shape {tuple(cloud.shape)}")
        x, y = cloud.detach().double().cpu().numpy().T
        axes.scatter(x, y, s=3, color=colour, linewidths=0)
    if reference is not None:  # a few samples far away must not set the axes
        low, high = _frame(reference)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.set_title(outside(points, reference), fontsize=10, color="tab:red")
    return figure


def _frame(reference: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of the axes of a figure: the reference with a margin of 5 %."""
    low, high = reference.double().amin(0).cpu(), reference.double().amax(0).cpu()
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def outside(points: Tensor, reference: Tensor) -> str:
    """Return how many points the axes of the reference leave out, in words; empty for none.

    >>> square = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> outside(torch.tensor([[0.0, 1.05], [3.0, 4.0]]), square), outside(square, square)
    ('1 of 2 samples outside of the picture, the farthest at |x| = 5', '')
    """
    x = points.double().cpu()
    low, high = _frame(reference)
    out = ((x < low) | (x > high)).any(1)
    if not out.any():
        return ""
    farthest = float(x[out].norm(dim=1).max())
    return f"{int(out.sum()):,} of {len(x):,} samples outside of the picture, the farthest at |x| = {farthest:.3g}"


def save_figure(path: str | os.PathLike[str], figure: Figure, dpi: int) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_file(Path(path), content.getvalue())
