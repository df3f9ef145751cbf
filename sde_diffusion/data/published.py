"""Published image sets: the digits that come with scikit-learn, MNIST and CIFAR-10.

Digits are 1,797 real 8 x 8 scans of handwritten digits with 17 grey levels (Alpaydin and Kaynak
1998). They have no official split; here 297 are held out for tests. MNIST and CIFAR-10 are read
from files, in their official order, from whichever of these is in the data directory:

- `mnist.npz` with uint8 train_images (60000, 28, 28), train_labels, test_images, test_labels; or
  the original IDX files `train-images-idx3-ubyte` and so on, with or without .gz;
- `cifar10_train_1.npz` to `_5.npz` and `cifar10_test.npz`, each with `labels` and lossless WebP
  strips `webp_00` to `webp_19` of 500 images; or the original binary version, `data_batch_1.bin` to
  `_5.bin` and `test_batch.bin`.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sde_diffusion.data.dataset import Data, as_data, real
from sde_diffusion.data.files import read_arrays
from sde_diffusion.files.reading import require_regular
from solvers.errors import InputError, NotFoundError

HELD_OUT = 297


def _labelled(x: np.ndarray, labels: np.ndarray, name: str) -> Data:
    """A set whose classes are known: the numbers stay, whichever of them a part of the set has."""
    classes = real(labels, f"{name}: the labels").astype(np.int64)
    return replace(as_data(x, name=name), labels=torch.tensor(classes))


_MOST = 2**30  # bytes that a file of MNIST unpacks to


def load_digits(split: str) -> Data:
    """Return the 8 x 8 digits: 1,500 to train on or 297 held out, in their original order.

    The digits are sorted by class and, within a class, in a fixed random order; the held-out ones
    are 297 equally spaced ones of this list, so that every class is held out in proportion.

    >>> len(load_digits("train")), len(load_digits("test"))
    (1500, 297)
    """
    from sklearn import datasets  # slow to import, and only needed here

    levels, labels = datasets.load_digits(return_X_y=True)
    listed = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    held = np.zeros(len(labels), bool)
    held[listed[((np.arange(HELD_OUT) + 0.5) * len(labels) / HELD_OUT).astype(int)]] = True
    chosen = held if split == "test" else ~held
    x = np.round(levels[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return _labelled(x, labels[chosen], "digits")


def load_mnist(folder: Path, split: str) -> Data:
    """Return the 60,000 training or 10,000 test images of MNIST, 28 x 28.

    Raises:
        FileNotFoundError: the folder has neither mnist.npz nor the IDX files.
        ValueError: a file is incomplete or of another kind.
    """
    if (folder / "mnist.npz").exists():
        arrays = read_arrays(folder / "mnist.npz")
        names = f"{split}_images", f"{split}_labels"
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"{folder / 'mnist.npz'} has no array {' or '.join(missing)}")
        return _labelled(arrays[names[0]], arrays[names[1]], "mnist")
    prefix = "train" if split == "train" else "t10k"
    pair = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        found = [folder / name for name in (stem, f"{stem}.gz") if (folder / name).exists()]
        if not found:
            raise NotFoundError(f"no MNIST in {folder}: expected mnist.npz, or {stem} or {stem}.gz")
        pair.append(read_idx(found[0]))
    return _labelled(pair[0], pair[1], "mnist")


def read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an IDX file: 0 0 8 rank, the sizes as big-endian int32, the values."""
    try:
        require_regular(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST)
    except (OSError, EOFError) as error:
        raise InputError(f"cannot unpack {path}: {error}") from None
    rank = content[3] if content[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(content[4 : 4 + 4 * rank], ">i4").tolist()
    values = np.frombuffer(content[4 + 4 * rank :], np.uint8)
    if rank == 0 or len(sizes) != rank or np.prod(sizes) != len(values):
        raise InputError(f"{path} is no IDX file of bytes: {len(content)} bytes, sizes {sizes}")
    return values.reshape(sizes)


def load_cifar10(folder: Path, split: str) -> Data:
    """Return the 50,000 training or 10,000 test images of CIFAR-10, 3 x 32 x 32.

    Raises:
        FileNotFoundError: a batch is missing both as packed .npz and in the binary version.
        ValueError: a file is incomplete or of another kind.
    """
    names = (
        [(f"cifar10_train_{k}.npz", f"data_batch_{k}.bin") for k in range(1, 6)]
        if split == "train"
        else [("cifar10_test.npz", "test_batch.bin")]
    )
    batches = []
    for packed, binary in names:
        if (folder / packed).exists():
            batches.append(read_strips(folder / packed))
        elif (folder / binary).exists():
            batches.append(read_records(folder / binary))
        else:
            raise NotFoundError(f"no CIFAR-10 in {folder}: expected {packed} or {binary}")
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return Data("cifar10", images, labels, "image")


def read_strips(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 3, 32, 32) and labels (N,) of a file of strips, 32 wide and 32 n high."""
    arrays = read_arrays(path)
    try:
        labels = torch.tensor(arrays.pop("labels").astype(np.int64))
        strips = [
            np.asarray(Image.open(io.BytesIO(arrays[name].tobytes()), formats=("WEBP", "PNG")).convert("RGB"))
            for name in sorted(arrays)
        ]
        images = torch.tensor(np.concatenate(strips).reshape(len(labels), 32, 32, 3))
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"{path} is no file of labels and WebP strips: {error!r}") from None
    return images.permute(0, 3, 1, 2).contiguous(), labels


def read_records(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of a binary file: per record a label and 3 x 32 x 32 bytes."""
    require_regular(path)
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % 3073:
        raise InputError(f"{path} has {len(content)} bytes; CIFAR-10 records have 3073 bytes each")
    records = torch.tensor(content.reshape(-1, 3073))
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long()
