r"""The degraded images of a task, as conditions of a network that restores them (Saharia et al. 2022, SR3, Palette).

    task:superres:F    means over F x F pixels, (C, H / F, W / F)
    task:colorize      the mean of the channels, (1, H, W)
    task:inpaint       the image with a random rectangle set to 0, and the mask: 1 where it is seen, (C + 1, H, W)

``task:superres:4@digits`` makes them of other samples: the test split of a data set by name, or a path. The rectangle
of a sample is drawn by its position; it covers a quarter to a half of each side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.data.conditions import Conditions
from solvers.errors import InputError, choose

PREFIX = "task:"
TASKS = ("superres", "colorize", "inpaint")
_BATCH = 512


def place_of(task: str, factor: int | None = None) -> str:
    """The place by which ``load_condition`` finds the conditions of a task.

    Raises:
        ValueError: an unknown task, or a factor that does not belong to it.

    >>> place_of("superres", 4), place_of("colorize")
    ('task:superres:4', 'task:colorize')
    """
    choose(task, dict.fromkeys(TASKS), "task")
    if task != "superres":
        if factor is not None:
            raise InputError(f"factor (--factor) is of the task superres; {task} has none")
        return PREFIX + task
    return f"{PREFIX}superres:{4 if factor is None else factor}"


def task_conditions(place: str, data: Any, name: str | None = None) -> Conditions:
    """The conditions of a task, made of the samples of a data set (``Data``).

    Args:
        place: as the module says, without a data set behind @.
        data: images.
        name: name of the conditions; the place by default.

    Raises:
        ValueError: an unknown task, samples that are no images, or sizes that the factor does not divide.

    >>> from sde_diffusion.data import load_data
    >>> task_conditions("task:superres:4", load_data("digits")).shape
    (1, 2, 2)
    """
    task, *rest = place.removeprefix(PREFIX).split(":")
    choose(task, dict.fromkeys(TASKS), "task")
    shape = tuple(data.shape)
    if len(shape) != 3 or not data.is_image:
        raise InputError(f"the task {task} is of images (C, H, W); {data.name} has samples of shape {shape}")
    degrade: Callable[[Tensor, Tensor], Tensor]
    if task == "superres":
        if len(rest) != 1 or not rest[0].isdigit() or int(rest[0]) < 2:
            raise InputError(f"superres has a factor from 2 up, task:superres:4; got {place}")
        factor = int(rest[0])
        if shape[1] % factor or shape[2] % factor:
            raise InputError(
                f"the factor {factor} of superres does not divide {shape[1]} x {shape[2]}, the size of the images of "
                f"{data.name}; choose another --factor or --size"
            )
        degrade = lambda x, _: F.avg_pool2d(x, factor)  # noqa: E731
    elif rest:
        raise InputError(f"the task {task} has no settings; got {place}")
    elif task == "colorize":
        if shape[0] != 3:
            raise InputError(f"colorize is of RGB images, 3 channels; {data.name} has {shape[0]}")
        degrade = lambda x, _: x.mean(1, keepdim=True)  # noqa: E731
    else:
        degrade = lambda x, index: hidden(x, index)  # noqa: E731
    parts = []
    for index in torch.split(torch.arange(len(data), device="cpu"), _BATCH):
        parts.append(degrade(data.batch(index), index))
    return Conditions(name or place, torch.cat(parts).contiguous(), "image")


def hidden(x: Tensor, index: Tensor) -> Tensor:
    """Images x (B, C, H, W) with a rectangle set to 0, and the mask as a last channel; index is their position.

    >>> found = hidden(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]))
    >>> found.shape, bool((found[:, 0] == found[:, 1]).all())
    (torch.Size([2, 2, 8, 8]), True)
    """
    height, width = x.shape[2:]
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    mask = torch.ones(len(x), 1, height, width)
    for k, position in enumerate(index.tolist()):
        draw = torch.rand(4, generator=torch.Generator().manual_seed(position), dtype=torch.float64)
        inside = []
        for places, size, share, start in ((rows, height, draw[0], draw[1]), (columns, width, draw[2], draw[3])):
            length = max(1, round(size * (0.25 + 0.25 * float(share))))
            first = int(float(start) * (size - length + 1))
            inside.append((places >= first) & (places < first + length))
        mask[k, 0] -= (inside[0][:, None] & inside[1][None, :]).float()
    mask = mask.to(x)
    return torch.cat([x * mask, mask], dim=1)
