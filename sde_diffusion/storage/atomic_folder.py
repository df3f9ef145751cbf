"""Folders of tensors that are either whole or not there: safetensors and JSON, no pickle.

A folder is written under a temporary name, every file is synced, `state.json` with the size and
SHA-256 of the others comes last, and a rename makes the folder appear. Whatever moment the process
is killed or the disk is full at, the folder that was there before is untouched and half a folder
never bears a final name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sde_diffusion.files.reading import load_json, require_regular
from sde_diffusion.files.writing import (
    discard,
    remove,
    require_new,
    sweep,
    sync,
    temporary,
    write_file,
    write_synced,
)
from solvers.errors import InputError, InputTypeError

FORMAT = 1
STATE = "state.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")  # of a file in a checkpoint: never a path

__all__ = [
    "FORMAT",
    "STATE",
    "CheckpointError",
    "checked_format",
    "discard",
    "pack",
    "read_json",
    "read_state",
    "require_new",
    "sha256",
    "sweep",
    "sync",
    "to_json",
    "unpack",
    "write_file",
    "write_folder",
]


class CheckpointError(InputError):
    """A checkpoint that cannot be used: torn, foreign, or of another version."""


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with these tensors; equal tensors give equal bytes.

    Raises:
        TypeError: a value that is not a tensor, such as a module's extra state.

    >>> import torch
    >>> pack({"a": torch.zeros(2)}) == pack({"a": torch.zeros(2)})
    True
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputTypeError(f"the state '{name}' is a {type(value).__name__}; only tensors can be saved")
    # Copies, because safetensors refuses tied weights; loading ties them again.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(own, metadata)


def unpack(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: it is torn or another kind of file.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> _ = path.write_bytes(pack({"a": torch.ones(2)}))
    >>> unpack(path)
    {'a': tensor([1., 1.])}
    """
    require_regular(path)
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
    """The object in a JSON file of this format version.

    Raises:
        CheckpointError: it is torn, foreign, or of another version.
    """
    try:
        content = load_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return checked_format(content, path)


def checked_format(content: object, path: Path) -> dict[str, Any]:
    """The given content, if it is an object of this format version.

    Raises:
        CheckpointError: it is foreign, or of another version.

    >>> checked_format({"format": 1, "step": 3}, Path("state.json"))["step"]
    3
    """
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise CheckpointError(f"{path} was not written by sdediff: it has no format number")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this version of sdediff reads format "
            f"{FORMAT}. Use the version that wrote it, or train again"
        )
    return content


def write_folder(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write each group of tensors as `<name>.safetensors`, and `state.json`, as one folder.

    Args:
        folder: its final name; a torn folder of this name is replaced.
        groups: file name without ending -> tensors by name.
        state: anything JSON can hold; `format` and `files` are added.

    Raises:
        OSError: it could not be written (disk full, no permission); nothing of it is left behind.

    >>> import tempfile, torch
    >>> folder = Path(tempfile.mkdtemp()) / "step-1"
    >>> write_folder(folder, {"model": {"w": torch.zeros(1)}}, {"step": 1})
    >>> sorted(path.name for path in folder.iterdir()), read_state(folder)["step"]
    (['model.safetensors', 'state.json'], 1)
    """
    partial = temporary(folder)
    try:
        partial.mkdir(parents=True)
        files = {}
        for name, tensors in groups.items():
            content = pack(tensors)
            write_synced(partial / f"{name}.safetensors", content)
            files[f"{name}.safetensors"] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        write_synced(partial / STATE, to_json({"format": FORMAT, **state, "files": files}))
        sync(partial)
        discard(folder)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        remove(partial)
        raise


def read_state(folder: Path) -> dict[str, Any]:
    """The content of `state.json` of a folder, after a check that every file is unchanged.

    Raises:
        CheckpointError: the folder is incomplete, foreign, or of another version; the message says which
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
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{folder / STATE}: files names '{name}'; expected a plain name.safetensors")
        if not isinstance(expected, dict) or set(expected) != {"bytes", "sha256"}:
            raise CheckpointError(f"{folder / STATE}: files.{name} must have bytes and sha256; got {expected!r}")
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{folder} is not a whole checkpoint: {name} is missing, or a link")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} is torn: {path.stat().st_size} bytes of {expected['bytes']}")
        if sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {STATE}")
    return state


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> sha256(path)[:16]
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
