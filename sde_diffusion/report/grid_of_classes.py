"""A grid of images grouped by class: a heading for each class, and its images beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.report.pictures import VISIBLE, image_grid
from solvers.errors import InputError

MOST_COLUMNS = 12
SIZE, MARGIN = 15, 10  # pixels of the font, and around a heading


def labelled_grid(x: Tensor, labels: Sequence[int], names: Sequence[str] | None = None) -> Image.Image:
    """Images in rows, one class after the other, each class with its name to the left.

    Args:
        x: (B, C, H, W) in [-1, 1] with 1 or 3 channels.
        labels: the class of each image, B.
        names: of all classes; their numbers by default.

    Raises:
        ValueError: as ``image_grid``; another number of labels.

    >>> grid = labelled_grid(torch.zeros(6, 1, 8, 8), [0, 1, 0, 1, 0, 1], ["cat", "ship"])
    >>> grid.height, grid.mode
    (134, 'RGB')
    """
    if len(labels) != len(x):
        raise InputError(f"{len(labels)} labels for {len(x)} images; give one each")
    classes = sorted(set(labels))
    titles = [str(k) if names is None or k >= len(names) else names[k] for k in classes]
    columns = min(max(list(labels).count(k) for k in classes), MOST_COLUMNS)
    scale = max(1, VISIBLE // max(x.shape[2:]))
    font = ImageFont.load_default(SIZE)
    left = math.ceil(max(font.getlength(title) for title in titles)) + 2 * MARGIN
    tall, wide, gap = x.shape[2] * scale, x.shape[3] * scale, 2
    index = torch.tensor(list(labels), device=x.device)
    blocks = [image_grid(x[index == k], columns=columns, scale=scale, gap=gap) for k in classes]
    width = left + columns * (wide + gap) + gap
    height = sum(block.height - gap for block in blocks) + gap
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    text = ImageDraw.Draw(canvas)
    text.rectangle((0, 0, left - 1, height), fill="white")
    top = 0
    for title, block in zip(titles, blocks, strict=True):
        canvas.paste(block.convert("RGB"), (left, top))
        text.text((MARGIN, top + gap + tall / 2), title, fill="black", font=font, anchor="lm")
        top += block.height - gap
    return canvas
