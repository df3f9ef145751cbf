"""Samples from files: a folder of images, or an .npy or .npz file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data.files import load_path
from sde_diffusion.evaluation.features.extractor import is_image
from sde_diffusion.storage.atomic_folder import read_json
from sde_diffusion.storage.sample_record import EARLIER, RECORD, SAMPLES_KIND
from solvers.errors import InputError

JPEG = (".jpg", ".jpeg")
_BEYOND, _FEW = 0.25, 0.01  # of the range, of the values: a sampler may overshoot, a wrong range is farther off


def read_samples(
    path: str | os.PathLike[str], value_range: tuple[float, float] | None = None, *, own_units: bool = False
) -> Tensor:
    """The samples (n, ...) in a file or folder, float32; images in [-1, 1], or unscaled.

    Args:
        path: a folder of images, a folder that `sdediff sample` wrote, or an .npy or .npz file; bytes are images.
        value_range: what black and white are in images of floats. Samples with a record beside them are in the units
            of the data of their model.
        own_units: do not scale floats, because the reference is of floats.

    Raises:
        FileNotFoundError: nothing exists at the path.
        ValueError: it cannot be read, or its images are floats in no stated range or far outside of it.

    Warns:
        UserWarning: images that went through JPEG.

    >>> import tempfile
    >>> import numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.zeros((3, 2), np.float32))
    >>> read_samples(path).shape
    torch.Size([3, 2])
    """
    path = Path(path).expanduser()
    if any((path / name).is_file() for name in (RECORD, EARLIER)) and (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.is_dir():
        lossy = sum(file.suffix.lower() in JPEG for file in path.rglob("*"))
        if lossy:
            warnings.warn(
                f"{lossy} files below {path} are JPEG: its artefacts change every metric, by more than good solvers "
                "differ; save samples as PNG or .npz",
                stacklevel=2,
            )
    data = load_path(path)
    if not is_image(data.shape) or data.x.dtype == torch.uint8:
        return data.batch(slice(None))
    if value_range is None and (own_units or _has_record(path)):
        return data.x
    if value_range is None:
        raise InputError(
            f"{path} has images of floats from {float(data.x.min()):.4g} to {float(data.x.max()):.4g}, and which "
            "values are black and white is not stated: give --range -1,1 or --range 0,1 (value_range), or save bytes"
        )
    low, high = value_range
    if not low < high:
        raise InputError(f"a range is the values of black and white, the smaller first; got {low:g}, {high:g}")
    x = 2 * (data.x - low) / (high - low) - 1
    if float((x.abs() > 1 + 2 * _BEYOND).double().mean()) > _FEW:
        raise InputError(
            f"{path} has values from {float(data.x.min()):.4g} to {float(data.x.max()):.4g}, far outside the stated "
            f"range {low:g} to {high:g}"
        )
    return x


def _has_record(path: Path) -> bool:
    records = [record for name in (RECORD, EARLIER) if (record := path.with_name(name)).is_file()]
    return path.name == "samples.npz" and any(read_json(record).get("kind") == SAMPLES_KIND for record in records)
