"""Folders of tensors that are either whole or not there: safetensors and JSON, no pickle.

A folder is written under a temporary name, every file is synced, `state.json` with the size and
SHA-256 of the others comes last, and a rename makes the folder appear. Whatever moment the process
is killed or the disk is full at, the folder that was there before is untouched and half a folder
never bears a final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from solvers.errors import ExistsError, InputError, InputTypeError

FORMAT = 1
STATE = "state.json"


class CheckpointError(InputError):
    """A checkpoint that cannot be used: torn, foreign, or of another version."""


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file; equal tensors give equal bytes.

    Raises:
        TypeError: a value that is not a tensor, such as a module's extra state.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputTypeError(f"the state '{name}' is a {type(value).__name__}; only tensors can be saved")
    # Copies, because safetensors refuses tied weights; loading ties them again.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(own, metadata)


def unpack(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: it is torn or another kind of file.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is torn, or no safetensors file: {error}") from None


def to_json(content: Any) -> bytes:
    """Return a value as indented JSON; NaN and infinity are errors.

    >>> print(to_json({"step": 3}).decode(), end="")
    {
      "step": 3
    }
    """
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of this format version.

    Raises:
        CheckpointError: it is torn, foreign, or of another version.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is torn, or not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"{path} was not written by sdediff: it has no format number")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this version of sdediff reads format "
            f"{FORMAT}. Use the version that wrote it, or train again"
        )
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or replace one, so that it is whole or as it was before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write_synced(partial, content)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write each group of tensors as `<name>.safetensors`, and `state.json`, as one folder.

    Args:
        folder: its final name; a torn folder of this name is replaced.
        groups: file name without ending -> tensors by name.
        state: anything JSON can hold; `format` and `files` are added.

    Raises:
        OSError: it could not be written (disk full, no permission); nothing of it is left behind.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        files = {}
        for name, tensors in groups.items():
            content = pack(tensors)
            _write_synced(partial / f"{name}.safetensors", content)
            files[f"{name}.safetensors"] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        _write_synced(partial / STATE, to_json({"format": FORMAT, **state, "files": files}))
        sync(partial)
        discard(folder)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_state(folder: Path) -> dict[str, Any]:
    """Return `state.json` of a folder after checking that every file is what was written.

    Raises:
        CheckpointError: the folder is torn, foreign, or of another version; the message says which
            file.
    """
    if not (folder / STATE).is_file():
        raise CheckpointError(f"{folder} is not a whole checkpoint: it has no {STATE}")
    state = read_json(folder / STATE)
    files = state.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{folder / STATE} was not written by sdediff: it lists no files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is not a whole checkpoint: {name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} is torn: {path.stat().st_size} bytes of {expected['bytes']}")
        if sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {STATE}")
    return state


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def discard(folder: Path) -> None:
    """Remove a folder; killed half-way, what is left does not bear its name."""
    if folder.exists():
        rubbish = folder.with_name(f".{folder.name}.rubbish")
        _remove(rubbish)
        folder.rename(rubbish)
        _remove(rubbish)


def sweep(parent: Path) -> None:
    """Remove what killed writers left in a folder."""
    for pattern in (".*.partial", ".*.rubbish"):
        for path in parent.glob(pattern):
            _remove(path)


def sync(folder: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system offers it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_new(folder: Path) -> None:
    """Refuse a folder with something in it: what is there is never overwritten."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExistsError(f"{folder} exists already; choose another folder with --out")
