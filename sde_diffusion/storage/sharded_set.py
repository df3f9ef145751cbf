"""A large sample set in shards: written part by part, never lost, never twice.

    <folder>/job.json          the record of the run, from its start: what ``sample --resume`` needs
    <folder>/shards/           ``storage.shard_files``
    <folder>/samples.json      the record, when all shards are there and were read once more: the set is whole
    <folder>/samples.png       the first samples

Shard k holds samples k S to (k + 1) S - 1. Whatever is killed at whatever moment, a shard is either there whole or made
again with the same bits, because a sample depends on its seed and on its batch, and batches on the index alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sde_diffusion.files.writing import hold, new_folder, sweep, write_file
from sde_diffusion.storage.atomic_folder import CheckpointError, read_json, to_json
from sde_diffusion.storage.record_types import SampleRecord, ShardRecord
from sde_diffusion.storage.sample_record import RECORD, SAMPLES_KIND, Samples, picture
from sde_diffusion.storage.shard_files import Shard, read_shard, shard_path
from sde_diffusion.storage.typed_json import checked
from solvers.errors import ExistsError, InputError, NotFoundError

JOB = "job.json"
SHARDS = "shards"
SHOWN = 64  # samples in the picture


@dataclass(frozen=True)
class ShardedSet:
    """The shards of a sample set.

    Attributes:
        folder: folder of the set.
        record: the record: that of ``samples.json`` if the set is whole, else that of ``job.json``.
    """

    folder: Path
    record: SampleRecord

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.record["n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.record["shape"])

    @property
    def size(self) -> int:
        """Samples of a shard; the last may have fewer."""
        return self.record["shards"]["size"]

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.n // self.size)

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return shard_path(self.folder / SHARDS, number, self.record["shards"]["form"])

    def describe(self) -> str:
        """Number and size of the shards, and their folder."""
        one = "1 file" if self.count == 1 else f"{self.count:,} files"
        return f"{self.n:,} samples in {one} of {min(self.size, self.n):,}: {self.folder / SHARDS}"

    def read(self, number: int) -> tuple[Shard, ShardRecord]:
        """A shard and its record, checked.

        Raises:
            CheckpointError: it is missing, torn or damaged, or its samples are not those of its number.
        """
        shard, record = read_shard(self.path(number), self.shape)
        first = number * self.size
        n = min(self.size, self.n - first)
        seeds = self.record["seed"] * 2**32 + torch.arange(first, first + n, device="cpu")
        if record["first"] != first or not torch.equal(shard.seeds, seeds):
            raise CheckpointError(f"{self.path(number)} does not hold samples {first} to {first + n - 1} of its set")
        return shard, record

    def missing(self) -> list[int]:
        """The numbers of the shards that are not there whole."""
        return [number for number in range(self.count) if not self._is_whole(number)]

    def _is_whole(self, number: int) -> bool:
        try:
            self.read(number)
        except CheckpointError:
            return False
        return True

    def parts(self) -> Iterator[Shard]:
        """The shards in order.

        Raises:
            CheckpointError: as ``read``.
        """
        for number in range(self.count):
            yield self.read(number)[0]

    def digest(self) -> tuple[str, list[ShardRecord]]:
        """SHA-256 of the float32 bytes of all samples in order, and the records of all shards; reads all of it.

        Raises:
            CheckpointError: as ``read``.
        """
        total, records = hashlib.sha256(), []
        for number in range(self.count):
            shard, record = self.read(number)
            total.update(shard.x.numpy().tobytes())
            records.append(record)
        return total.hexdigest(), records

    def finish(self, record: SampleRecord) -> bool:
        """Write picture and ``samples.json``; whether samples of this shape have a picture."""
        shard = self.read(0)[0]
        drawn = picture(self.folder / "samples.png", Samples(shard.x[:SHOWN], shard.seeds[:SHOWN], record))
        write_file(self.folder / RECORD, to_json(record))
        return drawn


def create(folder: Path, record: SampleRecord) -> ShardedSet:
    """Begin a set in a new folder.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it could not be written.
    """
    with new_folder(folder, taken="next") as new:
        (new.temporary / SHARDS).mkdir()
        write_file(new.temporary / JOB, to_json(record))
    return ShardedSet(new.path, record)


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds a set in shards, whole or not."""
    return (folder / JOB).is_file()


def open_set(folder: Path) -> ShardedSet:
    """The set in a folder, whole or not.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: its record is torn, foreign, or of another version.
    """
    if not is_sharded(folder):
        raise NotFoundError(f"nothing to resume in {folder}: there is no {JOB}, which sdediff sample writes for shards")
    path = folder / (RECORD if (folder / RECORD).is_file() else JOB)
    content = read_json(path)
    if content.get("kind") != SAMPLES_KIND:
        raise CheckpointError(f"{path} is no record of samples")
    record = checked(content, SampleRecord, str(path))
    if "shards" not in record or (folder / SHARDS).is_symlink() or not (folder / SHARDS).is_dir():
        raise CheckpointError(f"{folder} is no set in shards: it has no folder {SHARDS}, or a link")
    return ShardedSet(folder, record)


def whole_set(folder: Path) -> ShardedSet:
    """The set in a folder, all of it.

    Raises:
        ValueError: it is not whole.
    """
    found = open_set(folder)
    if not (folder / RECORD).is_file():
        raise InputError(f"the samples in {folder} are not all there yet: sdediff sample --resume {folder}")
    return found


@contextmanager
def alone(found: ShardedSet) -> Iterator[None]:
    """Keep all other writers out of a set, and remove what killed ones left.

    Raises:
        FileExistsError: another process writes into it.
    """
    shards = found.folder / SHARDS
    try:
        handle = hold(shards)
    except BlockingIOError:
        raise ExistsError(f"another process writes into {found.folder}; wait for it, or stop it") from None
    try:
        sweep(shards, everything=True)
        sweep(found.folder, everything=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)
