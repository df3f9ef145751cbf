"""CIFAR-10 as a tensor on the device: uint8 images that never leave it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data import Data, as_data, load_data


def resident(data_dir: Path | None, split: str, n: int | None, shape: tuple[int, int, int]) -> Data:
    """The first n images of a split in bytes, averaged over blocks of pixels to a smaller size where asked."""
    found = load_data("cifar10", data_dir, split=split)
    x = found.x[:n]
    if tuple(x.shape[1:]) != shape:
        x = torch.nn.functional.adaptive_avg_pool2d(x.float(), shape[1:]).round().to(torch.uint8)
    labels = None if found.labels is None else found.labels[:n]
    return as_data(x, labels, name=f"cifar10-{split}-{shape[1]}")


def flipped(x: Tensor) -> Tensor:
    """Bytes as values in [-1, 1], each image flipped with probability 1/2."""
    images = x.float() / 127.5 - 1
    flip = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


def batch_of(x: Tensor, size: int) -> Tensor:
    """A random batch of flipped images, drawn on the device of the images."""
    return flipped(x[torch.randint(len(x), (size,), device=x.device)])
