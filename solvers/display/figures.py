"""Figures with matplotlib, which is imported when one is drawn: samples of any kind, and files that appear whole."""

from __future__ import annotations

import io
import math
import os
import secrets
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.errors import InputError

FORMATS = (".png", ".svg", ".pdf")
IMAGES, LINES, PAIRS = 64, 8, 4  # images, signals and entries of a vector that a figure shows


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of that size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_format(path: str | os.PathLike[str]) -> str:
    """The suffix of a file name, after refusing one that names no format of a figure.

    Raises:
        ValueError: another suffix than .png, .svg or .pdf.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"a figure is written as {', '.join(FORMATS)}, by the name of the file; got '{path.name}'")
    return suffix


def save_figure(path: str | os.PathLike[str], figure: Any, dpi: int = 130) -> None:
    """Write a figure, whole or not at all, in the format of the file name: .png, .svg or .pdf.

    Raises:
        ValueError: another suffix than .png, .svg or .pdf.
        OSError: the file cannot be written; an existing one is unchanged.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "points.svg"
    >>> save_figure(path, samples_figure(torch.zeros(3, 2)))
    >>> path.read_text()[:5]
    '<?xml'
    """
    suffix, content = check_format(path), io.BytesIO()
    figure.savefig(content, format=suffix[1:], dpi=dpi)
    write_whole(Path(path), content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def samples_figure(x: Tensor, reference: Tensor | None = None, title: str = "") -> Any:
    """A figure of samples: images in a grid, points in 2-D, signals as lines, other vectors as a pair plot.

    Args:
        x: (B, C, H, W) images of 1 or 3 channels in [-1, 1], (B, 2) points, (B, C, L) signals or (B, D) vectors.
        reference: samples drawn below in grey; not of images.
        title: the heading.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no samples, or samples of another shape.

    >>> import torch
    >>> len(samples_figure(torch.zeros(9, 3)).axes)  # 3 entries against each other
    9
    """
    if len(x) == 0:
        raise InputError("there are no samples to draw")
    x = x.detach().double().cpu()
    below = None if reference is None else reference.detach().double().cpu()
    if x.ndim == 4 and x.shape[1] in (1, 3):
        figure = _images(x)
    elif x.ndim == 2 and x.shape[1] > 1:
        figure = _points(x, below)
    elif x.ndim in (2, 3):
        figure = _signals(x, below)
    else:
        raise InputError(
            f"samples of shape {tuple(x.shape[1:])} have no figure; expected images (B, 1 or 3, H, W), signals "
            "(B, C, L) or vectors (B, D)"
        )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _images(x: Tensor) -> Any:
    count = min(len(x), IMAGES)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = new_figure(0.7 * columns + 0.2, 0.7 * rows * x.shape[2] / x.shape[3] + 0.4)
    for k, image in enumerate(((x[:count] + 1) / 2).clamp(0, 1).movedim(1, -1).numpy()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    return figure


def _points(x: Tensor, below: Tensor | None) -> Any:
    if x.shape[1] == 2:
        figure = new_figure(4.6, 4.6)
        axes = figure.add_subplot(aspect="equal")
        for cloud, colour in ((below, "0.75"), (x, "tab:blue")):
            if cloud is not None:
                axes.scatter(*cloud.numpy().T, s=3, color=colour, linewidths=0)
        return figure
    shown = min(x.shape[1], PAIRS)
    figure = new_figure(1.7 * shown, 1.7 * shown)
    panels = figure.subplots(shown, shown, squeeze=False)
    for i, row in enumerate(panels):
        for j, axes in enumerate(row):
            for cloud, colour in ((below, "0.75"), (x, "tab:blue")):
                if cloud is None:
                    continue
                if i == j:
                    axes.hist(cloud[:, i].numpy(), bins=30, color=colour, density=True, histtype="step")
                else:
                    axes.scatter(cloud[:, j].numpy(), cloud[:, i].numpy(), s=2, color=colour, linewidths=0)
            axes.tick_params(labelsize=6)
        row[0].set_ylabel(f"x[{i}]", fontsize=8)
    for j, axes in enumerate(panels[-1]):
        axes.set_xlabel(f"x[{j}]", fontsize=8)
    return figure


def _signals(x: Tensor, below: Tensor | None) -> Any:
    channels = 1 if x.ndim == 2 else x.shape[1]
    figure = new_figure(6.4, 1.6 * channels + 0.6)
    for c in range(channels):
        axes = figure.add_subplot(channels, 1, c + 1)
        for signals, colour in ((below, "0.8"), (x, None)):
            if signals is not None:
                lines = signals[:LINES].reshape(min(len(signals), LINES), channels, -1)[:, c]
                if lines.shape[1] == 1:  # one number a sample: its distribution
                    axes.hist(signals.flatten().numpy(), bins=40, color=colour, density=True, histtype="step")
                else:
                    axes.plot(lines.numpy().T, color=colour, lw=0.8)
        if channels > 1:
            axes.set_ylabel(f"channel {c}", fontsize=8)
    return figure
