"""Sampling into shards: in constant memory, by any number of processes, and after any interruption.

Each shard is made by one process from whole batches and written by it at once. The first process hands out the numbers
of the shards that are missing, reads all of them at the end, and writes the record.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.data.labels import class_values
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling.job import SampleJob
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.record_types import SampleRecord, ShardForm, ShardsEntry
from sde_diffusion.storage.shard_files import Shard, write_shard
from sde_diffusion.storage.sharded_set import ShardedSet
from solvers.errors import choose, require_whole

FROM = 50_000  # samples from which a set is written as shards unless asked otherwise
SIZE = 1024  # samples of a shard
FORMS: dict[str, ShardForm] = {"npz": "npz", "safetensors": "safetensors", "webdataset": "webdataset"}
"""Formats of shards by name."""


def shards_for(n: int | None, form: str | None, size: int | None, batch_size: int) -> ShardsEntry | None:
    """The division of n samples into shards; None for a single file.

    Args:
        n: number of samples; None for a default, which is small.
        form: a name in ``FORMS``; None for npz.
        size: samples of a shard, which are rounded up to whole batches; None for ``SIZE``.
        batch_size: samples of a batch.

    Raises:
        ValueError: an unknown format, or a size below 1.

    >>> shards_for(100, None, None, 256), shards_for(100_000, None, 1000, 256)
    (None, {'size': 1024, 'form': 'npz'})
    """
    if form is None and size is None and (n is None or n < FROM):
        return None
    form = choose(form or "npz", FORMS, "shards")
    require_whole("shard_size (--shard-size)", SIZE if size is None else size, 1, 2**31)
    batches = -(-(SIZE if size is None else size) // batch_size)
    return {"size": batches * batch_size, "form": form}


def work_of(job: SampleJob) -> dict[str, Callable[..., Any]]:
    """The work of a pool that ``run_sharded`` shares: make and write the shard of a number in a folder."""

    def shard(folder: str, number: int) -> None:
        found = ShardedSet(Path(folder), job.record)
        first, batch = number * found.size, job.settings.batch_size
        n = min(found.size, job.n - first)
        parts = list(job.draw(range(first // batch, -(-(first + n) // batch))))
        labels = job.record.get("labels")
        classes = None
        if labels is not None:
            values = class_values(labels, job.record["data"].get("class_names"))
            classes = torch.from_numpy(np.asarray(values, np.int64)[np.arange(first, first + n) % len(values)])
        x = torch.cat([part.x.float().cpu() for part in parts])
        nfe = torch.cat([part.nfe.cpu() for part in parts])
        write_shard(found.path(number), Shard(first, x, seeds_of(job.settings.seed, n, first), classes), nfe)

    return {"shard": shard}


def run_sharded(
    job: SampleJob, found: ShardedSet, pool: Pool, progress: Callable[[float], None] | None = None
) -> SampleRecord:
    """Make the missing shards of a set, on the processes of a pool with ``work_of`` the run.

    Returns:
        The record of the whole set; ``found.finish`` writes it.

    Raises:
        FloatingPointError: samples that are not finite; shards that are written stay.
        OSError: a shard could not be written.
        CheckpointError: a shard changed on the disk after it was written.
    """
    missing = found.missing()
    done = found.count - len(missing)
    for k, _ in enumerate(pool.map("shard", ((str(found.folder), number) for number in missing))):
        if progress is not None:
            progress((done + k + 1) / found.count)
    sha256, records = found.digest()
    mean = sum(record["sum"] for record in records) / job.n
    return job.finished(sha256, min(r["least"] for r in records), max(r["most"] for r in records), mean)
