"""Checks before a file that may come from others is opened: its kind, its size, the shapes that its header claims.

A FIFO blocks a reader, a device may never end, and a header of a hundred bytes can request terabytes. All
three are found before a byte of the content is read or allocated.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from solvers.errors import InputError

LARGEST_JSON = 2**28  # bytes
UNPACKED, RATIO = 2**28, 250  # largest unpacked size of an archive, in bytes and relative to its own size
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def require_regular(path: str | os.PathLike[str]) -> int:
    """The size of a regular file in bytes.

    Raises:
        OSError: no such file exists.
        ValueError: it is a folder, a pipe or a device, which could make a reader wait for ever.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
        raise InputError(f"{os.fspath(path)} is {kind}; expected a regular file")
    return status.st_size


def parse_json(content: str | bytes, name: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is torn, is nested too deep, or has NaN or an infinite number; the message has the name.

    >>> parse_json('{"n": NaN}', "a.json")
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: a.json is torn, or not JSON: NaN is no number of JSON
    """
    try:
        return json.loads(content, parse_constant=_refuse)
    except RecursionError:
        raise InputError(f"{name} is nested too deep to be read") from None
    except ValueError as error:
        raise InputError(f"{name} is torn, or not JSON: {error}") from None


def load_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: no such file exists.
        ValueError: as ``parse_json``; no regular file, or a very large one.
    """
    size = require_regular(path)
    if size > LARGEST_JSON:
        raise InputError(f"{path} has {size:,} bytes; a JSON file of sdediff has {LARGEST_JSON:,} at most")
    return parse_json(path.read_bytes(), str(path))


def _refuse(constant: str) -> float:
    raise InputError(f"{constant} is no number of JSON")


def check_array(path: Path) -> None:
    """Check the header of an .npy file before it is mapped or read.

    Raises:
        OSError: there is no file.
        ValueError: it is torn, holds Python objects, or claims more values than the file has bytes for.
    """
    size = require_regular(path)
    with path.open("rb") as file:
        _check_header(file, size, str(path))


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name, or an .npy array as {"x": array}; nothing is unpickled.

    Raises:
        OSError: the file does not exist.
        ValueError: it is torn, holds Python objects, claims more values than the file has bytes for, or is an archive
            that unpacks to a great many times its own size.
    """
    size = require_regular(path)
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            _check_header(file, size, str(path))
            file.seek(0)
            return {"x": _load(file, str(path))}
        file.seek(0)
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"cannot read {path} as numbers: neither .npy nor .npz ({error})") from None
        with archive:
            return _members(archive, size, path)


def array_of(content: bytes, name: str) -> np.ndarray[Any, Any]:
    """The array of the bytes of an .npy file.

    Raises:
        ValueError: it is torn, holds Python objects, or claims more values than there are bytes for.
    """
    file = io.BytesIO(content)
    _check_header(file, len(content), name)
    file.seek(0)
    return _load(file, name)


def _members(archive: zipfile.ZipFile, size: int, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > max(UNPACKED, RATIO * size):
        raise InputError(
            f"cannot read {path}: it has {size:,} bytes and unpacks to {total:,}, more than {RATIO} times as many; "
            "save it without compression if that is right"
        )
    found = {}
    for member in members:
        name = f"{member.filename} in {path}"
        try:
            with archive.open(member) as file:
                _check_header(file, member.file_size, name)
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _load(file, name)
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, _zlib_error()) as error:
            raise InputError(f"cannot read {name} as numbers: {error}") from None
    return found


def _zlib_error() -> type[Exception]:
    import zlib

    return zlib.error


def _check_header(file: Any, size: int, name: str) -> None:
    """Compare the shape in the header of an array with the size of the file."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise InputError(f"version {version[0]}.{version[1]} of .npy")
        shape, _, dtype = read(file)
    # Headers are Python literals to numpy: what a torn one raises is of many kinds.
    except Exception as error:
        raise InputError(f"cannot read {name} as numbers: its header is torn, or no .npy ({_short(error)})") from None
    if dtype.hasobject:
        raise InputError(f"cannot read {name} as numbers: it holds Python objects (pickle), which could run code")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise InputError(f"cannot read {name} as numbers: its header has the shape {shape}")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size:
        raise InputError(
            f"cannot read {name} as numbers: shape {shape} of {dtype} takes {needed:,} bytes, and it has {size:,}"
        )


def _load(file: BinaryIO | Any, name: str) -> np.ndarray[Any, Any]:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"cannot read {name} as numbers: {_short(error)}") from None


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
