r"""The stages of a cascade and their data.

Stage 1 models images of the smallest size, x_1 = A_1 x, with A_k the means over squares of pixels that give size k.
Stage k models p(x_k | x_(k-1)): its condition image is x_(k-1) = A x_k, and so

    p(x_1) p(x_2 | x_1) ... p(x_K | x_(K-1)) = p(x_1, ..., x_K) = p(x_K),      x_K = x,

since each x_k determines those before it: with exact stages the last one has the law of the data.

A file of a cascade has the options of training that all stages share, and a table for each stage:

    data = "digits"

    [[stage]]
    size = 4                  # 4 x 4
    steps = 500
    nfe = 12                  # share of the evaluations of a sample

    [[stage]]
    size = 8
    steps = 1000
    condition_noise = 0.4     # noise-conditioning augmentation in training, up to this level
    noise = 0.1               # its level in sampling
    nfe = 8
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from sde_diffusion.data import Data
from sde_diffusion.data.conditions import Conditions
from sde_diffusion.training.config_file import read_table
from sde_diffusion.training.defaults import STAGE
from solvers.errors import InputError, InputTypeError

NFE = 10
_BATCH = 1024
_OWN = ("size", "nfe", "noise")


@dataclass(frozen=True)
class Stage:
    """A stage of a cascade.

    Attributes:
        size: height of its images.
        nfe: its share of the evaluations of a sample.
        noise: level to which the image before is noised in sampling.
        options: its training options, by name.
    """

    size: int
    nfe: int = NFE
    noise: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


def read_cascade(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Stage]]:
    """The common options and the stages in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TOML, fewer than 2 stages, sizes that do not fit, or an unknown option.
        TypeError: an option of the wrong type.
    """
    common = read_table(path)
    tables = common.pop("stage", None)
    if not isinstance(tables, list) or len(tables) < 2 or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path} needs 2 or more tables [[stage]], one for each size, the smallest first")
    stages = []
    for number, table in enumerate(tables, 1):
        where = f"{path}, stage {number}"
        size, nfe, noise = table.get("size"), table.get("nfe", NFE), table.get("noise", 0.0)
        if type(size) is not int or size < 1 or type(nfe) is not int or nfe < 1:
            raise InputTypeError(f"{where}: size and nfe are whole numbers from 1 up; got {size!r} and {nfe!r}")
        if not isinstance(noise, (int, float)) or not 0 <= noise <= 1 or (number == 1 and noise):
            raise InputError(f"{where}: noise is the level of the image before, from 0 to 1; got {noise!r}")
        stages.append(Stage(size, nfe, float(noise), {k: v for k, v in table.items() if k not in _OWN}))
    check_sizes([stage.size for stage in stages], str(path))
    for name in ("condition", "task", "latent", "autoencoder", "out"):
        if name in common or any(name in stage.options for stage in stages):
            raise InputError(f"{path}: a cascade makes its conditions and folders itself; leave out {name}")
    return common, stages


def check_sizes(sizes: Sequence[int], what: str) -> None:
    """Refuse sizes of which one does not divide the next.

    Raises:
        ValueError: with the two sizes.

    >>> check_sizes([7, 14, 30], "cascade.toml")
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: cascade.toml: stages of 14 and 30 do not fit: each size is a multiple of the one before
    """
    for small, large in pairwise(sizes):
        if large % small or large == small:
            raise InputError(
                f"{what}: stages of {small} and {large} do not fit: each size is a multiple of the one before"
            )


def stage_data(data: Data, sizes: Sequence[int]) -> list[Data]:
    """The data of each stage: means over squares of pixels, with those of the stage before as condition images.

    Args:
        data: images (C, H, W), of the last size.
        sizes: heights, from the smallest.

    Raises:
        ValueError: data that are no images, or of another size.

    >>> from sde_diffusion.data import load_data
    >>> [stage.shape for stage in stage_data(load_data("digits"), [2, 4, 8])]
    [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    """
    if not data.is_image or data.shape[1] != sizes[-1] or data.condition is not None:
        raise InputError(
            f"the last stage has size {sizes[-1]}; {data.name} has samples of shape {data.shape}, and needs images of "
            "that height (--size), without conditions"
        )
    for size in sizes:
        if data.shape[2] % (sizes[-1] // size):
            raise InputError(f"the width {data.shape[2]} of {data.name} is not divided by {sizes[-1] // size}")
    found: list[Data] = []
    for size in sizes:
        factor = sizes[-1] // size
        x = (
            data.x
            if factor == 1
            else torch.cat(
                [
                    F.avg_pool2d(data.batch(index), factor)
                    for index in torch.split(torch.arange(len(data), device="cpu"), _BATCH)
                ]
            )
        )
        before = (
            None if not found else Conditions(f"{STAGE}{found[-1].shape[1]}", found[-1].batch(slice(None)), "image")
        )
        file = data.file if factor == 1 else None
        found.append(replace(data, x=x.contiguous() if factor > 1 else x, file=file, condition=before))
    return found


def split_nfe(total: int, shares: Sequence[int]) -> list[int]:
    """The evaluations of each stage: the total in proportion to the shares, at least 1 each.

    Raises:
        ValueError: fewer evaluations than stages.

    >>> split_nfe(20, [10, 6, 4]), split_nfe(7, [10, 6, 4])
    ([10, 6, 4], [4, 2, 1])
    """
    if total < len(shares):
        raise InputError(f"a cascade of {len(shares)} stages needs as many evaluations at least; got nfe = {total}")
    exact = [total * share / sum(shares) for share in shares]
    found = [max(1, int(value)) for value in exact]
    # The rest goes to the stages that rounding has cost most.
    while sum(found) < total:
        found[max(range(len(found)), key=lambda k: exact[k] - found[k])] += 1
    while sum(found) > total:
        found[max(range(len(found)), key=lambda k: found[k])] -= 1
    return found


def stage_folder(folder: Path, number: int, size: int) -> Path:
    """The run of a stage, numbered from 1.

    >>> stage_folder(Path("runs/c"), 2, 14).as_posix()
    'runs/c/stage-2-14'
    """
    return folder / f"stage-{number}-{size}"
