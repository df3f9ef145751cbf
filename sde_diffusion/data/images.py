"""One image at a time, from a file, from bytes, or decoded already, to an array of bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sde_diffusion.files.reading import require_regular
from solvers.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"})
# The decoders that may see a file. Pillow chooses by content: without a list, an EPS file called a.png would start
# Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, EOFError, Image.DecompressionBombError)


def image_paths(root: Path) -> list[Path]:
    """All images below a folder, sorted; hidden ones are passed over.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise InputError(f"no images below {root}: expected files ending in {' '.join(sorted(SUFFIXES))}")
    return paths


def folder_classes(root: Path, paths: list[Path]) -> tuple[list[str], list[int]] | None:
    """Class names and the class of each path: the subfolder directly below root; None if an image lies in none."""
    if any(path.parent == root for path in paths):
        return None
    names, index = np.unique([path.relative_to(root).parts[0] for path in paths], return_inverse=True)
    return names.tolist(), index.tolist()


def decode(
    source: Path | bytes | Image.Image,
    name: str,
    *,
    mode: str | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray[Any, Any]:
    """Return an image as bytes (H, W, C).

    Args:
        source: a file, its content, or a decoded image.
        name: for messages.
        mode: convert to this mode of ``CHANNELS``; None keeps what it is, so that grey stays grey. Palettes and CMYK
            become RGB, black-and-white becomes grey.
        size: (height, width): the largest centred part of this proportion, scaled with antialiasing.

    Raises:
        ValueError: it cannot be decoded, or has a mode of more than 8 bits; the message has the name.

    >>> decode(Image.new("L", (6, 4), 7), "seven", size=(2, 2)).squeeze().tolist()
    [[7, 7], [7, 7]]
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_file(source), formats=FORMATS)
        with image:
            image.load()
            kept = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(image.mode, image.mode)
            wanted = mode or kept
            if kept not in CHANNELS:
                raise InputError(f"{name} has mode {image.mode}; convert it to 8 bits per channel first")
            image = image if image.mode == wanted else image.convert(wanted)
            if size is not None and image.size != size[::-1]:
                image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
            found = np.asarray(image, np.uint8)
    except BROKEN as error:
        raise InputError(f"cannot read the image {name}: {error}") from None
    return found.reshape(*found.shape[:2], -1)


def describe(image: np.ndarray[Any, Any]) -> str:
    """Say the size and mode of an image (H, W, C).

    >>> describe(np.zeros((4, 6, 3)))
    '6 x 4 RGB'
    """
    height, width, channels = image.shape
    return f"{width} x {height} {({1: 'gray', 2: 'gray with alpha', 4: 'RGBA'}).get(channels, 'RGB')}"


def _file(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    require_regular(source)
    return source
