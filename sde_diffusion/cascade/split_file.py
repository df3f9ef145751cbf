"""Tuned splits in the folder of a cascade: splits.json, which ``sdediff tune`` writes and ``sample`` reads.

Each entry has the hashes of the stages and their noise levels, and serves these alone: it does not apply after the
stages were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from sde_diffusion.cascade.splitting import Split
from sde_diffusion.files.writing import write_file
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, read_json, to_json
from sde_diffusion.storage.typed_json import Between, checked

FILE = "splits.json"
KIND = "sdediff splits of a cascade"


class SplitEntry(TypedDict):
    """A split: evaluations of each stage, its distance and that of the split before on held-out noise."""

    split: list[Annotated[int, Between(1, 10**6)]]
    error: Annotated[float, Between(0, 1e300)]
    given_error: Annotated[float, Between(0, 1e300)]
    held_out: Annotated[int, Between(1, 2**31)]
    noise: list[Annotated[float, Between(0, 1)]]
    sha256: list[str]


class _SplitsFile(TypedDict):
    format: int
    kind: str
    splits: list[SplitEntry]


def read_splits(folder: Path) -> list[SplitEntry]:
    """The entries of a cascade; none where nothing was tuned.

    Raises:
        CheckpointError: a torn or foreign file.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    content = read_json(path)
    if content.get("kind") != KIND:
        raise CheckpointError(f"{path} has no splits of a cascade; remove it, and tune again")
    return checked(content, _SplitsFile, str(path))["splits"]


def keep_split(folder: Path, split: Split, sha256: Sequence[str], noise: Sequence[float]) -> Path:
    """Write a split, in the place of one for as many evaluations.

    Raises:
        CheckpointError: the file there is torn or foreign, and is left as it is.
    """
    others = [entry for entry in read_splits(folder) if sum(entry["split"]) != sum(split.nfe)]
    entry: SplitEntry = {
        "split": list(split.nfe),
        "error": split.error,
        "given_error": split.given_error,
        "held_out": split.held_out,
        "noise": list(noise),
        "sha256": list(sha256),
    }
    splits = sorted([*others, entry], key=lambda entry: sum(entry["split"]))
    content: _SplitsFile = {"format": FORMAT, "kind": KIND, "splits": splits}
    write_file(folder / FILE, to_json(content), replace=True)
    return folder / FILE


def find_split(folder: Path, nfe: int, sha256: Sequence[str], noise: Sequence[float]) -> list[int] | None:
    """The split for this number of evaluations, these weights and these noise levels; None for none.

    Raises:
        CheckpointError: a torn or foreign file.
    """
    for entry in read_splits(folder):
        same = entry["sha256"] == list(sha256) and entry["noise"] == list(noise)
        if sum(entry["split"]) == nfe and same and len(entry["split"]) == len(sha256):
            return entry["split"]
    return None
