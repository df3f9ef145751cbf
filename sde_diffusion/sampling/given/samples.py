"""Samples that a user gives to edit, from image files or arrays, as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data.files import load_path
from sde_diffusion.data.images import SUFFIXES
from sde_diffusion.sampling.given.degraded_images import read_image
from sde_diffusion.storage.checkpoint import StoredModel
from solvers.errors import InputError, NotFoundError


def given_samples(paths: Sequence[Path], stored: StoredModel) -> Tensor:
    """The samples in files, (m, *shape) float32 in units of the model's data.

    Args:
        paths: images of the size of the model's samples, or .npy and .npz arrays of one or more samples.
        stored: the model.

    Raises:
        FileNotFoundError: nothing exists at a path.
        ValueError: a file of another kind, size or number of channels.
    """
    shape = stored.sample_shape
    if shape is None:
        raise InputError(f"{stored.path} does not say the shape of a sample")
    return torch.cat([_samples(path, shape, stored) for path in paths])


def _samples(path: Path, shape: tuple[int, ...], stored: StoredModel) -> Tensor:
    if not path.exists():
        raise NotFoundError(f"no file at {path}")
    expected = " x ".join(str(size) for size in shape)
    if path.suffix.lower() in SUFFIXES:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(f"{path} is an image, and this model samples {expected} values; give an .npy or .npz file")
        if stored.model.get("normalization") is not None and stored.model.get("latent") is None:
            raise InputError(
                f"{path} has 8-bit colours, and this model's data are floats in units of their own; give them as .npy"
            )
        x = read_image(path, shape[0])
        if tuple(x.shape[1:]) != shape:
            raise InputError(f"{path} is {x.shape[2]} x {x.shape[3]} pixels; this model takes {shape[1]} x {shape[2]}")
        return x
    x = load_path(path).batch(slice(None)).float()
    if tuple(x.shape[1:]) != shape:
        own = " x ".join(str(size) for size in x.shape[1:])
        raise InputError(f"{path} has samples of {own} values; this model takes {expected}")
    return x
