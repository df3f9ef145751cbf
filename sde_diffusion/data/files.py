"""Your own data: an array in .npy or .npz, or a folder of images. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sde_diffusion.data.dataset import Data, as_data
from sde_diffusion.data.images import decode, folder_classes, image_paths, size_text
from sde_diffusion.data.prepared import NOTE, load_prepared
from sde_diffusion.files.reading import load_arrays
from solvers.errors import InputError, NotFoundError


def load_path(path: Path, layout: str | None = None) -> Data:
    """Return the data in an .npy or .npz file, a folder of images, or what ``sdediff prepare`` wrote.

    Args:
        path: where it is.
        layout: of an array of images, as in ``as_data``.

    Raises:
        FileNotFoundError: nothing exists at the path.
        ValueError: it is a file of another kind, or cannot be read.
    """
    if layout is not None and path.is_dir():
        raise InputError(f"layout (--layout) applies to arrays; {path} is a folder, leave it out")
    if (path / NOTE).is_file():
        return load_prepared(path)
    if path.is_dir():
        return load_folder(path)
    if not path.exists():
        raise NotFoundError(f"no data at {path}: expected an .npy or .npz file or a folder of images")
    if path.suffix not in (".npy", ".npz"):
        raise InputError(
            f"{path} is no data file: expected .npy, .npz or a folder of images; parquet files are prepared first: "
            "sdediff prepare"
        )
    return load_array(path, layout)


def load_array(path: Path, layout: str | None = None) -> Data:
    """Return an .npy array, or the arrays `x` and `labels` of an .npz file.

    An .npz whose samples are not called `x` may hold one array of any name beside `labels`. What
    types and shapes mean is the rule of `as_data`.

    Raises:
        ValueError: the file is torn, holds Python objects, or does not say which array is the data.
        TypeError: the values are not real numbers.
    """
    arrays = read_arrays(path)
    labels = arrays.pop("labels", None)
    if "x" not in arrays and len(arrays) != 1:
        raise InputError(f"{path} holds the arrays {sorted(arrays)}; call the samples 'x' (and classes 'labels')")
    x = arrays["x"] if "x" in arrays else arrays.popitem()[1]
    return as_data(x, labels, name=str(path), layout=layout)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name, or an .npy array as {"x": array}."""
    return load_arrays(path)


def load_folder(root: Path) -> Data:
    """Return all images below a folder, in the order of their paths.

    If every image lies in a subfolder, the subfolders directly below `root`, sorted, are the
    classes; the labels of a dataset.json in `root` (StyleGAN, EDM) come first. Files that are not named like
    images and hidden ones are passed over. Images of 16 bits are kept as floats from 0 to 65535.

    Raises:
        ValueError: no images, one that cannot be read, or one whose size or mode differs from the
            first.
    """
    paths = image_paths(root)
    first = read_image(paths[0])
    x = np.empty((len(paths), *first.shape), first.dtype)
    for k, path in enumerate(paths):
        image = first if k == 0 else read_image(path)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise InputError(
                f"{path} is {size_text(image)}, but {paths[0]} is {size_text(first)}; all images of a "
                "folder must have one size and mode; sdediff prepare makes them so"
            )
        x[k] = image
    names, labels = folder_classes(root, paths) or (None, None)
    values = torch.tensor(x if x.dtype == np.uint8 else x.astype(np.float32))
    return Data(
        str(root),
        values.permute(0, 3, 1, 2).contiguous(),
        None if labels is None else torch.tensor(labels, dtype=torch.int64),
        "image",
        class_names=None if names is None else tuple(names),
    )


def read_image(path: Path) -> np.ndarray:
    """Return one image as bytes (H, W, C)."""
    return decode(path, str(path))
