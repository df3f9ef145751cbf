"""Data decoded once: a folder with one array that training maps instead of reading.

    <folder>/x.npy           uint8 (N, C, H, W) for images, else float32 (N, ...)
    <folder>/labels.npy      int64 (N,), where there are labels
    <folder>/prepared.json   counts, shape, classes, fingerprint, where it came from, what was skipped

The samples are written one after the other, so a set of any size takes the memory of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from sde_diffusion.data.dataset import KINDS, Data
from sde_diffusion.data.labels import check_names, without_gaps
from sde_diffusion.files.reading import check_array, load_json
from sde_diffusion.files.writing import new_folder
from solvers.errors import InputError

NOTE = "prepared.json"
DATA_KIND = "sdediff data"
FORMAT = 1


def _whole(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data": (lambda v: isinstance(v, str) and v in KINDS, f"one of {', '.join(KINDS)}"),
    "samples": (_whole, "a whole number from 1 up"),
    "shape": (lambda v: isinstance(v, list) and all(map(_whole, v)), "a list of whole numbers from 1 up"),
    "classes": (lambda v: v is None or _whole(v), "a whole number from 1 up, or null"),
    "fingerprint": (lambda v: isinstance(v, str) and len(v) == 64 and v.isalnum(), "64 hex digits"),
}


def write_prepared(
    folder: Path,
    samples: Iterable[tuple[np.ndarray[Any, Any], int | None]],
    kind: str,
    about: Mapping[str, Any],
) -> Data:
    """Write samples and their labels into a new folder, all or nothing.

    Args:
        folder: new or empty.
        samples: (array of one sample, uint8 (C, H, W) or float32, its label or None); all of one shape.
        kind: as in ``Data``.
        about: further entries of prepared.json; read after the last sample.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: no samples.
        OSError: it could not be written; nothing is left behind.
    """
    with new_folder(folder) as new:
        partial = new.temporary
        labels = _write_array(partial / "x.npy", samples)
        values = None
        if None not in labels:
            index, values = without_gaps(labels)
            np.save(partial / "labels.npy", index)
        data = _map(partial, str(folder), kind)
        note = {
            "format": FORMAT,
            "kind": DATA_KIND,
            "data": kind,
            "samples": len(data),
            "shape": list(data.shape),
            "classes": data.classes,
            "fingerprint": data.fingerprint,
            "written": _written(partial),
            **about,
            "class_names": _names_of(about.get("class_names"), values),
        }
        _write(partial / NOTE, (json.dumps(note, indent=2, allow_nan=False) + "\n").encode())
    return load_prepared(folder)


def load_prepared(folder: Path) -> Data:
    """Map a prepared folder.

    Raises:
        ValueError: its note or arrays are torn, foreign, of another version, or do not belong together.
    """
    note = read_note(folder)
    try:
        data = _map(folder, str(folder), note["data"])
        names = check_names(note.get("class_names"), data.classes, str(folder / NOTE))
        data = replace(data, class_names=None if data.labels is None or names is None else names[: data.classes])
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder} is not whole: {error}; prepare it again") from None
    if (len(data), list(data.shape), data.classes) != (note["samples"], note["shape"], note["classes"]):
        raise InputError(
            f"{folder} is not whole: {NOTE} lists {note['samples']} samples of shape {note['shape']}, the arrays "
            f"have {len(data)} of {list(data.shape)}; prepare it again"
        )
    # Known from when it was written, unless a file was touched since: reading all of it at every start would take
    # longer than many a training.
    if note.get("written") != _written(folder) and data.fingerprint != note["fingerprint"]:
        raise InputError(
            f"the arrays in {folder} are not those that sdediff prepare wrote: their fingerprint is "
            f"{data.fingerprint[:12]}, and {NOTE} has {note['fingerprint'][:12]}; prepare the data again"
        )
    data.__dict__["fingerprint"] = note["fingerprint"]
    return data


def _names_of(names: Any, values: tuple[str, ...] | None) -> list[str] | None:
    """The names of the classes that are left when gaps are closed; the numbers they had, where they have no names."""
    if values is None or names is None:
        return names if values is None else list(values)
    return [names[int(value)] for value in values]


def _written(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of the arrays, which a file that takes their place does not have."""
    found = {name: folder / name for name in ("x.npy", "labels.npy") if (folder / name).is_file()}
    return {name: [status.st_size, status.st_mtime_ns] for name, p in found.items() for status in [p.stat()]}


def read_note(folder: Path) -> dict[str, Any]:
    """The content of prepared.json.

    Raises:
        ValueError: it is torn, foreign, or of another version.
    """
    try:
        note = load_json(folder / NOTE)
    except ValueError as error:
        raise InputError(f"{error}; prepare the data again") from None
    if not isinstance(note, dict) or note.get("kind") != DATA_KIND or note.get("format") != FORMAT:
        raise InputError(f"{folder / NOTE} was not written by this version of sdediff prepare; prepare the data again")
    for key, (test, expected) in _ENTRIES.items():
        if key not in note or not test(note[key]):
            raise InputError(f"{folder / NOTE}: {key} must be {expected}; got {str(note.get(key))[:60]!r}")
    return note


def _map(folder: Path, name: str, kind: str) -> Data:
    file = folder / "x.npy"
    labels = folder / "labels.npy"
    for path in (file, *([labels] if labels.is_file() else [])):
        check_array(path)
    # Copy-on-write, because torch has no read-only tensors; nothing writes to it.
    x = torch.from_numpy(np.load(file, mmap_mode="c"))
    return Data(
        name, x, torch.from_numpy(np.load(labels, allow_pickle=False)) if labels.is_file() else None, kind, file
    )


def _write_array(path: Path, samples: Iterable[tuple[np.ndarray[Any, Any], int | None]]) -> list[Any]:
    labels: list[Any] = []
    with path.open("wb") as file:
        first = None
        for x, label in samples:
            if first is None:
                first = x
                size = _header(file, first, 0)
            file.write(np.ascontiguousarray(x).tobytes())
            labels.append(label)
        if first is None:
            raise InputError("there is nothing to prepare: no sample could be read")
        file.seek(0)
        if _header(file, first, len(labels)) != size:
            raise OSError(f"the header of {path} has grown")
        file.flush()
        os.fsync(file.fileno())
    return labels


def _header(file: BinaryIO, sample: np.ndarray[Any, Any], count: int) -> int:
    """Write the .npy header; its size does not depend on the count, numpy leaves room for it to grow."""
    head = {
        "descr": np.lib.format.dtype_to_descr(sample.dtype),
        "fortran_order": False,
        "shape": (count, *sample.shape),
    }
    np.lib.format.write_array_header_1_0(file, head)
    return file.tell()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
