"""Data sets by name or path, ready for training.

=====================================  ========================================  ==================
name                                   what                                      splits
=====================================  ========================================  ==================
digits                                 8 x 8 handwritten digits, bundled         1,500 / 297
digit-pairs                            two coloured digits, with a caption       20,000 / 2,000
shapes                                 clouds of 128 points on three shapes      6,000 / 900
moons, rings, checkerboard, swiss-roll points in 2-D, generated                  20,000 / 20,000
mnist                                  28 x 28 digits, from `data_dir`           60,000 / 10,000
cifar10                                32 x 32 colour images, from `data_dir`    50,000 / 10,000
mnist-pairs                            two coloured digits, with a caption       20,000 / 2,000
a path                                 .npy, .npz, a folder of images, or what   train only
                                       `sdediff prepare` wrote (mapped from disk)
=====================================  ========================================  ==================
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from sde_diffusion.data.captioned.digit_pairs import load_digit_pairs, load_mnist_pairs
from sde_diffusion.data.clouds.shapes import load_shapes
from sde_diffusion.data.condition_files import load_condition
from sde_diffusion.data.conditions import Conditions
from sde_diffusion.data.dataset import Data, as_data
from sde_diffusion.data.files import load_path
from sde_diffusion.data.published import load_cifar10, load_digits, load_mnist
from sde_diffusion.data.toy import LAWS, load_toy
from solvers.errors import InputError, choose

PUBLISHED = {"mnist": load_mnist, "cifar10": load_cifar10, "mnist-pairs": load_mnist_pairs}
NAMES = ("digits", "digit-pairs", "shapes", *LAWS, *PUBLISHED)
"""Names of the data sets."""
SPLITS = ("train", "test")
"""Names of the splits."""

__all__ = ["NAMES", "SPLITS", "Conditions", "Data", "as_data", "load_condition", "load_data"]


def load_data(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    labels: bool = True,
    split: str = "train",
    layout: str | None = None,
    condition: str | None = None,
) -> Data:
    """Return a data set.

    Args:
        name: one of `NAMES`, or a path to an .npy or .npz file or a folder of images. What has a
            suffix, a slash, or exists is a path; `./digits` is the folder, `digits` the set.
        data_dir: folder with the files of mnist and cifar10.
        labels: False leaves the labels out.
        layout: of an array of images, "channels-first" or "channels-last"; by its shape when None.
        condition: place of a condition for each sample, in their order (``data.condition_files``); none when None.
        split: "train", or "test" for samples that training has never seen.

    Raises:
        ValueError: an unknown name or split, a missing `data_dir`, a path asked for its test split,
            data that cannot be read, is empty, mixed or not finite.
        TypeError: values that are not real numbers.
        FileNotFoundError: no such path, or files of mnist or cifar10 that are not in `data_dir`.

    >>> load_data("digits").describe()
    'digits: 1500 images of shape (1, 8, 8), 10 classes; values -1 to 1, mean -0.3885, std 0.7522'
    >>> load_data("digits", split="test").describe()
    'digits: 297 images of shape (1, 8, 8), 10 classes; values -1 to 1, mean -0.3937, std 0.7495'
    """
    choose(split, dict.fromkeys(SPLITS), "split")
    data = find_data(os.fspath(name), data_dir, split, layout)
    if condition is not None:
        data = replace(data, condition=load_condition(condition, data.shape, data))
    return data if labels else replace(data, labels=None, class_names=None)


def find_data(name: str, data_dir: str | os.PathLike[str] | None, split: str, layout: str | None = None) -> Data:
    """Return the data set of this name or at this path, with its labels."""
    if data_dir is not None and name not in PUBLISHED:
        raise InputError(
            f"data_dir (--data-dir) applies to {', '.join(PUBLISHED)}; {name} has no files there, leave it out"
        )
    if layout is not None and name in NAMES:
        raise InputError(f"layout (--layout) applies to arrays of your own; {name} has one already, leave it out")
    if name == "digits":
        return load_digits(split)
    if name == "digit-pairs":
        return load_digit_pairs(split)
    if name == "shapes":
        return load_shapes(split)
    if name in LAWS:
        return load_toy(name, split)
    if name in PUBLISHED:
        if data_dir is None:
            raise InputError(f"{name} is read from files: say where they are with data_dir (--data-dir)")
        return PUBLISHED[name](Path(data_dir), split)
    path = Path(name).expanduser()
    if not (path.suffix or len(path.parts) > 1 or path.exists()):
        choose(name, dict.fromkeys(NAMES), "data set (or path)")
    if split != "train":
        raise InputError(f"{path} has no {split} split; load the held-out samples from a path of their own")
    return load_path(path, layout)
