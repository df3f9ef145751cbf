"""Conditions in a file or a folder, in the order of the samples that they belong to.

PATH              a folder of images: those with the names of the data's images, or in the order of their names
                  one image
                  .npy; .npz with an array `condition`, or with one array alone
                  .csv: numbers in columns, with or without a line of their names
                  .txt: a caption on each line
PATH:NAME         the array NAME of an .npz file
PATH:A,B          the columns A and B of a .csv file
task:NAME         made of the samples (``data.tasks``)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.data.captioned.caption_files import SUFFIX, as_captions, read_captions
from sde_diffusion.data.conditions import Conditions, as_conditions
from sde_diffusion.data.dataset import Data
from sde_diffusion.data.files import load_folder, load_path, read_arrays, read_image
from sde_diffusion.data.images import SUFFIXES, image_paths
from sde_diffusion.data.prepared import NOTE
from sde_diffusion.data.tasks.degraded import PREFIX, task_conditions
from sde_diffusion.files.reading import require_regular
from solvers.errors import InputError, NotFoundError, choose

ARRAY = "condition"
PLACES = "a folder of images, an image, .npy, .npz, .csv or captions in a .txt"


def load_condition(
    place: str, sample: tuple[int, ...], data: Data | None = None, words: Sequence[str] | None = None
) -> Conditions:
    """The conditions in an image, a folder of images, an array, columns of a table or lines of captions.

    Args:
        place: as the module says.
        sample: shape of one sample.
        data: the samples that they belong to; None where they are conditions to sample for.
        words: the vocabulary of captions; that of the file when None.

    Raises:
        FileNotFoundError: nothing exists there.
        ValueError: a file of another kind, an unknown array or column, or another number of conditions than samples.
    """
    if place.startswith(PREFIX):
        return _of_task(place, data)
    path, part = _split(place)
    if not path.exists():
        raise NotFoundError(f"no conditions at {path}: expected {PLACES}")
    values: Any
    if path.suffix == SUFFIX and path.is_file():
        values = as_captions(read_captions(path), words, place)
    elif path.is_dir():
        if part is not None:
            raise InputError(f"{path} is a folder and has no part '{part}'")
        values = _folder(path, data)
    elif path.suffix == ".csv":
        values = read_columns(path, part)
    elif path.suffix.lower() in SUFFIXES:
        values = read_image(path).transpose(2, 0, 1)[None]
    elif path.suffix in (".npy", ".npz"):
        arrays = read_arrays(path)
        values = _array(arrays, part, path)
    else:
        raise InputError(f"{path} holds no conditions: expected {PLACES}")
    found = as_conditions(values, sample, place)
    if data is not None and len(found) != len(data):
        raise InputError(f"{place} has {len(found)} conditions for the {len(data)} samples of {data.name}")
    return found


def _of_task(place: str, data: Data | None) -> Conditions:
    task, _, source = place.partition("@")
    if not source and data is None:
        raise InputError(f"{place} makes conditions of samples; say of which: {place}@digits, or @ and a path")
    if source:
        from sde_diffusion.data import NAMES, find_data

        data = find_data(source, None, "test" if source in NAMES else "train")
    assert data is not None
    return task_conditions(task, data, place)


def _split(place: str) -> tuple[Path, str | None]:
    """The path, and the part of a file that is named after a colon."""
    path = Path(place).expanduser()
    before, colon, part = place.rpartition(":")
    if path.exists() or not colon or not Path(before).suffix:
        return path, None
    return Path(before).expanduser(), part


def _array(arrays: dict[str, np.ndarray[Any, Any]], part: str | None, path: Path) -> np.ndarray[Any, Any]:
    if part is not None:
        return choose(part, arrays, f"array of {path}")
    if ARRAY in arrays:
        return arrays[ARRAY]
    if len(arrays) != 1:
        raise InputError(
            f"{path} holds the arrays {', '.join(sorted(arrays))}; call the conditions '{ARRAY}', or name the array: "
            f"{path}:NAME"
        )
    return next(iter(arrays.values()))


def _folder(root: Path, data: Data | None) -> np.ndarray[Any, Any]:
    """The images of a folder, in the order of the data's images of the same names."""
    if (root / NOTE).is_file():
        return load_path(root).rows(slice(None)).numpy()
    images = load_folder(root).x.numpy()
    if data is None or not Path(data.name).is_dir() or data.file is not None:
        return images
    own = {path.relative_to(root).with_suffix("").as_posix(): k for k, path in enumerate(image_paths(root))}
    base = Path(data.name)
    wanted = [path.relative_to(base).with_suffix("").as_posix() for path in image_paths(base)]
    missing = [name for name in wanted if name not in own]
    if missing or len(own) != len(wanted):
        extra = sorted(set(own) - set(wanted))
        what = f"no image '{missing[0]}' in {root}" if missing else f"no image '{extra[0]}' in {base}"
        raise InputError(
            f"the images of {root} and {base} do not form pairs of equal names: {what}; {len(missing)} of "
            f"{len(wanted)} samples have no condition"
        )
    return images[[own[name] for name in wanted]]


def read_columns(path: Path, names: str | None = None) -> np.ndarray[Any, Any]:
    """Return columns of a .csv file of numbers, (rows, columns).

    Args:
        path: the file; its first line may hold the names of the columns.
        names: those to read, separated by commas; all by default.

    Raises:
        ValueError: a cell that is no number, lines of different lengths, or unknown names.
    """
    require_regular(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise InputError(f"{path} has no lines")
    header = None if all(map(_is_number, rows[0])) else [cell.strip() for cell in rows.pop(0)]
    if names is not None and header is None:
        raise InputError(f"the first line of {path} has no names of columns, so '{names}' cannot be read from it")
    known = {name: k for k, name in enumerate(header or [])}
    chosen = None if names is None else [choose(name.strip(), known, f"column of {path}") for name in names.split(",")]
    length = len(header or rows[0])
    for k, row in enumerate(rows):
        line = k + 1 + (header is not None)
        if len(row) != length:
            raise InputError(f"line {line} of {path} has {len(row)} cells; expected {length}")
        for j in range(length) if chosen is None else chosen:
            if not _is_number(row[j]):
                raise InputError(f"line {line} of {path}: '{row[j][:40]}' is no number")
    return np.array([[float(row[j]) for j in (range(length) if chosen is None else chosen)] for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
