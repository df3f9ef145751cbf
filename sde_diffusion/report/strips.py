"""Strips of images with headings: what was given, and what became of it, a row for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError

WIDEST = 12  # columns


def show_image(axes: Any, x: Tensor) -> None:
    """Draw an image (1 or 3, H, W) in [-1, 1] on axes of matplotlib."""
    shown = ((x.detach().float() + 1) / 2).clamp(0, 1).cpu().movedim(0, -1).numpy()
    grey = x.shape[0] == 1
    axes.imshow(shown[..., 0] if grey else shown, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def save_strips(
    path: str | os.PathLike[str], rows: Sequence[Tensor], headings: Sequence[str], names: Sequence[str] = ()
) -> None:
    """Write rows of images to a PNG file, with headings above the columns.

    Args:
        path: the file to write.
        rows: (K, 1 or 3, H, W) each, in [-1, 1]; at most 12 columns are shown.
        headings: one for each column.
        names: of the rows, at their left.

    Raises:
        ValueError: samples that are no images, or rows of different lengths.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    if not rows or any(row.ndim != 4 or row.shape[1] not in (1, 3) or len(row) != len(headings) for row in rows):
        found = [tuple(row.shape) for row in rows]
        raise InputError(f"strips are rows of images (K, 1 or 3, H, W) with K headings; got {found}, {len(headings)}")
    columns = min(len(headings), WIDEST)
    figure = Figure(figsize=(1.2 * columns + (0.8 if names else 0), 1.25 * len(rows) + 0.25), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for i, row in enumerate(rows):
        for k in range(columns):
            show_image(grid[i][k], row[k])
            if i == 0:
                grid[i][k].set_title(headings[k], fontsize=8)
        if names:
            grid[i][0].set_ylabel(names[i], fontsize=8)
    figure.savefig(path, format="png", dpi=130)


def save_paths(path: str | os.PathLike[str], given: Tensor, results: Tensor, reference: Tensor | None = None) -> None:
    """Write points in 2-D to a PNG file: given ones black, results blue, with a line from each to its results.

    Args:
        path: the file to write.
        given: (m, 2).
        results: (m, K, 2).
        reference: (N, 2), drawn first in grey.

    Raises:
        ValueError: another shape.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if results.ndim != 3 or results.shape[-1] != 2 or given.shape != (len(results), 2):
        raise InputError(f"expected points (m, 2) and (m, K, 2); got {tuple(given.shape)} and {tuple(results.shape)}")
    figure = Figure(figsize=(6, 6), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(aspect="equal")
    if reference is not None:
        _dots(axes, reference, 3, "0.8")
    for a, b in zip(given.double(), results.double(), strict=True):
        whole = torch.cat([a[None], b]).numpy()
        for end in whole[1:]:
            axes.plot([whole[0, 0], end[0]], [whole[0, 1], end[1]], color="tab:blue", linewidth=0.3, alpha=0.5)
    _dots(axes, results.flatten(0, 1), 8, "tab:blue")
    _dots(axes, given, 16, "black")
    figure.savefig(path, format="png", dpi=100)


def _dots(axes: Any, points: Tensor, size: float, colour: str) -> None:
    x, y = points.double().cpu().numpy().T
    axes.scatter(x, y, s=size, color=colour, linewidths=0)
