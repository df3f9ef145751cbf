"""One image at a time, from a file, from bytes, or decoded already, to an array of what it shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from sde_diffusion.data.labels import BESIDE, labels_beside, without_gaps
from sde_diffusion.files.reading import require_regular
from solvers.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"})
# The decoders that may see a file. Pillow chooses by content: without a list, an EPS file called a.png would start
# Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
BACKGROUND = "white"
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def image_paths(root: Path) -> list[Path]:
    """All images below a folder, sorted; hidden ones are passed over.

    Raises:
        ValueError: no images exist.
    """
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise InputError(f"no images below {root}: expected files ending in {' '.join(sorted(SUFFIXES))}")
    return paths


def folder_classes(root: Path, paths: list[Path]) -> tuple[list[str] | None, list[int]] | None:
    """Class names and the class of each path, None without classes.

    Those that dataset.json beside the images gives, where there is one; else the subfolders directly below root, unless
    an image lies in none.
    """
    if (root / BESIDE).is_file():
        labels = labels_beside(root, paths)
        if labels is None:
            return None
        index, values = without_gaps(labels)
        return None if values is None else list(values), index.tolist()
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
    background: str = BACKGROUND,
) -> np.ndarray[Any, Any]:
    """Return an image as it is shown: bytes (H, W, C), or 16-bit numbers (H, W, 1) where it has 16 bits.

    It is turned as its EXIF orientation says, and transparent pixels are laid on a background where the mode has no
    transparency.

    Args:
        source: a file, its content, or a decoded image.
        name: for messages.
        mode: convert to this mode of ``CHANNELS``; None keeps what it is, so that grey stays grey. Palettes and CMYK
            become RGB (RGBA with transparent colours), black-and-white becomes grey.
        size: (height, width): the largest centred part of this proportion, scaled with antialiasing.
        background: the colour behind transparent pixels, a name or #rrggbb.

    Raises:
        ValueError: it cannot be decoded, has several pages, or a mode of more than 16 bits; the message has the name.

    >>> decode(Image.new("L", (6, 4), 7), "seven", size=(2, 2)).squeeze().tolist()
    [[7, 7], [7, 7]]
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_file(source), formats=FORMATS)
        with image:
            # A photo in two sizes (MPO) is one photo; pages and frames are images of their own.
            if image.format != "MPO" and (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{name} has {pages} pages or frames; save them as images of their own first")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
                return _sixteen_bits(image, mode, size)
            clear = "transparency" in image.info
            opaque = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "PA": "RGBA"}.get(image.mode, image.mode)
            kept = {"L": "LA", "RGB": "RGBA"}.get(opaque, opaque) if clear else opaque
            wanted = mode or kept
            if kept not in CHANNELS:
                raise InputError(f"{name} has mode {image.mode}; convert it to 8 bits per channel first")
            if kept.endswith("A") and not wanted.endswith("A"):
                image = _on_background(image, background)
            image = image if image.mode == wanted else image.convert(wanted)
            if size is not None and image.size != size[::-1]:
                image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
            found = np.asarray(image, np.uint8)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what decoders raise on torn files is of many kinds
        raise InputError(f"cannot read the image {name}: {error}") from None
    return found.reshape(*found.shape[:2], -1)


def _on_background(image: Image.Image, colour: str) -> Image.Image:
    """An opaque image: what is transparent shows the colour."""
    rgba = image.convert("RGBA")
    behind = Image.new("RGBA", rgba.size, (*ImageColor.getrgb(colour)[:3], 255))
    return Image.alpha_composite(behind, rgba).convert("RGB")


def _sixteen_bits(image: Image.Image, mode: str | None, size: tuple[int, int] | None) -> np.ndarray[Any, Any]:
    """Numbers from 0 to 65535, (H, W, 1); bytes where a mode is asked for."""
    values = np.asarray(image).astype(np.float32)
    if size is not None and values.shape != size:
        values = np.asarray(ImageOps.fit(Image.fromarray(values), size[::-1], Image.Resampling.LANCZOS))
    values = values.clip(0, 65535)
    if mode is None:
        return values.round().astype(np.uint16)[:, :, None]
    grey = Image.fromarray((values / 257).round().astype(np.uint8)).convert(mode)
    return np.asarray(grey, np.uint8).reshape(*values.shape, -1)


def size_text(image: np.ndarray[Any, Any]) -> str:
    """Return the size and mode of an image (H, W, C) in words.

    >>> size_text(np.zeros((4, 6, 3)))
    '6 x 4 RGB'
    """
    height, width, channels = image.shape
    kind = {1: "gray", 2: "gray with alpha", 4: "RGBA"}.get(channels, "RGB")
    return f"{width} x {height} {'16-bit ' * (image.dtype == np.uint16)}{kind}"


def _file(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    require_regular(source)
    return source
