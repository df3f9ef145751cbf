"""The work of `sdediff sample` for a set in shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sde_diffusion.cli.errors import echo
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling import sharded
from sde_diffusion.sampling.job import SampleJob
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.locate import unused
from sde_diffusion.storage.record_types import SampleRecord
from sde_diffusion.storage.sharded_set import SHARDS, ShardedSet, alone, create


def begin(job: SampleJob, out: Path | None, place: Path) -> ShardedSet:
    """A new folder for the shards of a run, named on stderr before the work."""
    record = job.record
    solver = {"solver": record["solver"], "nfe": {"most": record["nfe"]["asked"] or len(record["grid"]["times"]) - 1}}
    found = create(out or unused(place / sample_record.folder_name(solver)), record)
    echo(f"{found.describe()}; after an interruption: sdediff sample --resume {found.folder}", err=True)
    return found


def fill(
    job: SampleJob, found: ShardedSet, pool: Pool, progress: Callable[[float], None] | None
) -> tuple[SampleRecord, Path]:
    """Make the shards that are missing in a set; the record, and the picture or else the folder of the shards."""
    with alone(found):
        record = sharded.run_sharded(job, found, pool, progress)
        drawn = found.finish(record)
    return record, found.folder / ("samples.png" if drawn else SHARDS)
