"""Decode a set of any kind once, into a folder that training maps (``prepared``)."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from sde_diffusion.data.dataset import Data
from sde_diffusion.data.files import load_path
from sde_diffusion.data.images import BACKGROUND, CHANNELS, decode, size_text
from sde_diffusion.data.prepared import NOTE, read_note, write_prepared
from sde_diffusion.data.sources import HUB, Source, folder, hugging_face, parquet
from sde_diffusion.data.toy import LAWS
from solvers.errors import ExistsError, InputError, NotFoundError, choose

LARGEST = 16_384  # pixels of a side
SETS = ("digits", *LAWS, "mnist", "cifar10")  # by name, with a size of their own
_AHEAD = 64  # images decoded ahead


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    mode: str | None = None,
    skip_bad: bool = False,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    background: str = BACKGROUND,
    layout: str | None = None,
) -> Data:
    """Write a set as one array of bytes (numbers stay float32) and return it, mapped.

    Args:
        source: a folder of images, a .parquet file or a folder of them, ``hf:NAME`` for a Hugging Face set, or what
            ``load_data`` reads as arrays.
        out: a new folder.
        size: (height, width) of every image: the largest centred part of this proportion, scaled.
        mode: L, LA, RGB or RGBA; what the first image is by default, so that grey stays grey.
        skip_bad: leave out images that cannot be read, and labels that are none, and count them.
        split: split of a Hugging Face set.
        image_column: column of a parquet file or Hugging Face set.
        label_column: likewise.
        threads: number of decoding threads; one per core by default.
        progress: called with how many images are done, and of how many.
        background: the colour behind transparent pixels where the mode has no transparency, a name or #rrggbb.
        layout: of an array of images, as in ``as_data``.

    Raises:
        FileExistsError: ``out`` is not empty.
        FileNotFoundError: nothing exists at ``source``.
        ValueError: an image that cannot be read, or differs in size or mode from the first; the message names it.
        ImportError: a library that reads the source is not installed.
        OSError: it could not be written; nothing is left behind.
    """
    target = Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExistsError(f"{target} exists already; choose another folder with --out")
    if size is not None and not (min(size) >= 1 and max(size) <= LARGEST):
        raise InputError(f"a size is at least 1 x 1 and at most {LARGEST:,} x {LARGEST:,}; got {size[1]} x {size[0]}")
    if mode is not None:
        choose(mode, CHANNELS, "mode of images")
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise InputError(f"a background is a colour such as white, black or #808080; got '{background}'") from None
    found = _source(str(source), split, image_column, label_column)
    if found is None:
        return _arrays(Path(source).expanduser(), target, size, mode, layout)
    if layout is not None:
        raise InputError(f"a layout applies to arrays; {source} holds image files")
    skipped: list[str] = []
    about: dict[str, Any] = {
        "source": found.name,
        "resized_to": None if size is None else list(size),
        "background": background,
        "class_names": found.classes,
        "skipped": skipped,
    }
    samples = _decoded(
        found, size, mode, background, skipped if skip_bad else None, threads or os.cpu_count() or 1, progress
    )
    return write_prepared(target, samples, "image", about)


def prepare_once(
    source: str | os.PathLike[str], size: tuple[int, int], *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Return the folder of a set resized before, or resize it now, to SOURCE-HEIGHTxWIDTH in the current folder.

    Args:
        source: a folder of images, a .parquet file or a folder of them, or ``hf:NAME``.
        size: (height, width) of every image.
        progress: as in ``prepare``.

    Raises:
        ValueError: data of a size of their own (arrays and data sets by name); images that have changed since they
            were resized; as ``prepare``.
        FileExistsError: another set has the folder.
    """
    name = str(source)
    if name in SETS:
        raise InputError(f"size (--size) is for image files; {name} has a size of its own, leave it out")
    if kind_of(name) == "array":
        raise InputError(f"size (--size) is for image files; {name} holds an array, leave it out")
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(name.removeprefix(HUB)).stem).strip("-.") or "data"
    target = Path(f"{stem}-{size[0]}x{size[1]}")
    if not target.exists():
        prepare(source, target, size=size, progress=progress)
        return target
    note = read_note(target) if (target / NOTE).is_file() else {}
    found = _source(name, "train", None, None)
    assert found is not None  # not an array
    if note.get("source") != found.name or note.get("resized_to") != list(size):
        raise ExistsError(
            f"{target} exists and does not hold {name} at this size; move it away, or train on it as it is"
        )
    if note["samples"] + len(note["skipped"]) != found.count:
        raise InputError(
            f"{target} holds {note['samples']} images and {name} has {found.count} now; remove {target} to resize them "
            f"again, or train on it as it is: --data {target}"
        )
    return target


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of 64 or 48x64.

    Raises:
        ValueError: text that is neither.

    >>> size_of("64"), size_of("48x64")
    ((64, 64), (48, 64))
    """
    parts = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if parts is None:
        raise InputError(f"--size takes 64 or HEIGHTxWIDTH, such as 48x64; got '{text}'")
    return int(parts[1]), int(parts[2] or parts[1])


def _source(name: str, split: str, image: str | None, label: str | None) -> Source | None:
    """The reader that opens images one by one; None for arrays."""
    kind, path = kind_of(name), Path(name).expanduser()
    if kind == "hub":
        return hugging_face(name.removeprefix(HUB), split, image, label)
    if kind == "parquet":
        return parquet(path, image, label)
    return folder(path) if kind == "folder" else None


def kind_of(source: str) -> str:
    """The kind of a source: "hub", "parquet", "folder" of images, or "array".

    Raises:
        FileNotFoundError: nothing exists at the path.

    >>> kind_of("hf:cifar10")
    'hub'
    """
    if source.startswith(HUB):
        return "hub"
    path = Path(source).expanduser()
    if not path.exists():
        raise NotFoundError(f"nothing to prepare at {path}: expected a folder of images, .npy, .npz or .parquet")
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    return "folder" if path.is_dir() else "array"


def _arrays(path: Path, target: Path, size: tuple[int, int] | None, mode: str | None, layout: str | None) -> Data:
    data = load_path(path, layout)
    if size is not None or mode is not None:
        raise InputError(f"{path} is an array: --size and --mode are for image files")
    labels = [None] * len(data) if data.labels is None else data.labels.tolist()
    samples = zip((x.numpy() for x in data.x), labels, strict=True)
    names = None if data.class_names is None else list(data.class_names)
    return write_prepared(target, samples, data.kind, {"source": str(path), "class_names": names, "skipped": []})


def _decoded(
    source: Source,
    size: tuple[int, int] | None,
    mode: str | None,
    background: str,
    skipped: list[str] | None,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[np.ndarray[Any, Any], int | None]]:
    """Images (C, H, W) with their labels, in order; bad ones end it, or are put on the list of the skipped."""
    first: tuple[str, np.ndarray[Any, Any]] | None = None

    def unpack(opened: Any) -> Any:
        if isinstance(opened, ValueError):
            return opened
        content, name, label = opened
        try:
            return decode(content, name, mode=mode, size=size, background=background), name, label
        except ValueError as error:
            return error

    def opened(k: int) -> Any:
        try:
            return source.open(k)
        except ValueError as error:
            return error

    numbers = iter(range(source.count))
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        while part := list(itertools.islice(numbers, _AHEAD)):
            # Opened here, one after the other, because readers of parquet keep one group of rows; decoded on threads.
            for result in pool.map(unpack, [opened(k) for k in part]):
                done += 1
                if progress is not None:
                    progress(done, source.count)
                if isinstance(result, ValueError):
                    if skipped is None:
                        raise InputError(f"{result}; --skip-bad leaves such images out") from None
                    skipped.append(str(result))
                    continue
                image, name, label = result
                if first is None:
                    first = name, image
                elif image.shape != first[1].shape or image.dtype != first[1].dtype:
                    raise InputError(
                        f"{name} is {size_text(image)}, but {first[0]} is {size_text(first[1])}; make all alike with "
                        "--size HEIGHTxWIDTH and --mode L or RGB"
                    )
                image = image.transpose(2, 0, 1)
                yield image if image.dtype == np.uint8 else image.astype(np.float32), label
