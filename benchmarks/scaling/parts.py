"""What a million samples cost, part by part, and whether the parts explain a measured run.

    python -m benchmarks.scaling.parts --n 4096

Measures the network, noise, writing and the last reading of a shard by themselves, in CPU time of this process, which
other work on the machine changes little, adds them up for n samples, and compares with sampling n samples into shards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling import sharded
from sde_diffusion.sampling.job import new_job
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.shard_files import Shard, write_shard
from sde_diffusion.storage.sharded_set import create


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    settings = SamplingSettings("ddim", nfe=args.nfe, batch_size=args.batch)
    parts = sharded.shards_for(args.n, "npz", 1024, args.batch)
    job = new_job(find_model("bundled"), args.n, settings, shards=parts, device="cpu")
    model, shape = job.model, tuple(job.record["shape"])
    x = noise_for(model, shape, seeds_of(0, args.batch))
    t = torch.full((args.batch,), 0.5)
    values = x[0].numel()
    model.network(x, t)
    network = min(cpu_seconds(lambda: model.network(x, t)) for _ in range(5)) / args.batch
    noise = cpu_seconds(lambda: noise_for(model, shape, seeds_of(0, 4096))) / 4096
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(0, x.repeat(4, 1, 1, 1), seeds_of(0, 1024))
        nfe = torch.ones(1024, dtype=torch.int64)
        write = cpu_seconds(lambda: write_shard(Path(folder, "shard-000000.npz"), shard, nfe)) / 1024
        found = create(Path(folder, "set"), job.record)
        with Pool(sharded.work_of(job)) as pool:
            assert pool is not None
            measured = cpu_seconds(lambda: sharded.run_sharded(job, found, pool))
        read = cpu_seconds(found.digest) / args.n
    whole = args.nfe * network + noise + write + read
    print(
        json.dumps(
            {
                "values of a sample": values,
                "microseconds of a sample": {
                    "a network evaluation": round(1e6 * network, 2),
                    "initial noise": round(1e6 * noise, 2),
                    "writing": round(1e6 * write, 2),
                    "reading and hashing": round(1e6 * read, 2),
                },
                "normal numbers a second": round(values / noise),
                "predicted seconds": round(args.n * whole, 2),
                "measured seconds": round(measured, 2),
                "CPU hours of a million at 20 evaluations": round(
                    1e6 * (20 * network + noise + write + read) / 3600, 2
                ),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
