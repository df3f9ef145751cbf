"""The figure of a restoration: observation, samples, their mean and standard deviation."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sde_diffusion.report.strips import show_image
from solvers.errors import InputError

SHOWN = 6  # samples in the picture


def save_restoration(
    path: str | os.PathLike[str],
    observation: Tensor,
    samples: Tensor,
    mean: Tensor,
    std: Tensor,
    original: Tensor | None = None,
) -> None:
    """Write a row of images with headings to a PNG file.

    Args:
        path: the file to write.
        observation: (C, H, W) in [-1, 1], enlarged to the size of a sample where it is smaller.
        samples: (n, C, H, W).
        mean: (C, H, W).
        std: (C, H, W); shown as its mean over channels, from 0 (white) to 1 (black).
        original: (C, H, W), where it is known.

    Raises:
        ValueError: samples that are no images.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise InputError(f"the figure of a restoration needs images (n, 1 or 3, H, W); got {tuple(samples.shape)}")
    columns: list[tuple[str, Tensor]] = [("observation", observation)]
    if original is not None:
        columns.insert(0, ("original", original))
    columns += [(f"sample {k + 1}", x) for k, x in enumerate(samples[:SHOWN])]
    columns += [("mean", mean), ("std", std)]
    figure = Figure(figsize=(1.35 * len(columns), 1.65), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (title, x) in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), k + 1)
        if title == "std":
            axes.imshow(x.mean(0).cpu().numpy(), cmap="Greys", vmin=0, vmax=1)
        else:
            show_image(axes, x)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=130)


def as_image(y: Tensor, visible: Tensor | None = None) -> Tensor:
    """An observation as an image in [-1, 1]: hidden pixels are mid-grey.

    >>> as_image(torch.ones(1, 1, 2), torch.tensor([[True, False]])).tolist()
    [[[1.0, 0.0]]]
    """
    return y if visible is None else torch.where(visible.expand_as(y), y, torch.zeros_like(y))
