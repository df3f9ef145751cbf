"""Samples of a stored model, with the record that makes them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.guidance_settings import GuidanceSettings
from sde_diffusion.sampling.job import SampleJob, digest, job_again, new_job
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.record_types import SampleRecord
from sde_diffusion.storage.sample_record import Samples
from solvers import Solution, Step

Progress = Callable[[float], None]


def draw(
    stored: StoredModel,
    n: int | None = None,
    settings: SamplingSettings | None = None,
    *,
    labels: Sequence[int] | None = None,
    guidance: float | GuidanceSettings = 1.0,
    start: NoisedStart | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Samples:
    """Draw samples from a stored model, and write down how.

    Args:
        stored: from ``checkpoint.checkpoint_at``.
        n: number of samples; ``default_count`` of the model's shape by default.
        settings: the settings of the run; the solver may also be "tuned".
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: w of classifier-free guidance towards the labels, or all settings of guidance. Where w is not 1, every
            prediction counts two evaluations.
        start: data to start from instead of pure noise.
        device: a name in ``DEVICES``.
        progress: called with the share of the work that is done, after every step.

    Raises:
        ValueError, FloatingPointError: as ``sde_diffusion.sampling.sampler``.
        CheckpointError: the weights do not fit the described network.
    """
    job = new_job(stored, n, settings, labels=labels, guidance=guidance, start=start, device=device)
    return run_job(job, progress=progress)


def redraw(
    record: SampleRecord,
    stored: StoredModel,
    *,
    solver: str | None = None,
    guide: StoredModel | None = None,
    source: Tensor | None = None,
    classifier: StoredModel | None = None,
    condition: GivenCondition | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Make the samples of a record again; x is bit-equal on the same machine and versions.

    Args:
        record: from ``read_record``.
        stored: the model, with the same weights.
        solver: ``path/to/file.py:Name`` of a record whose solver comes from a file. A record never runs a file: only
            one that is named here is run, after its SHA-256 was compared with that of the record.
        guide: the weaker model of a record with autoguidance, with the same weights.
        source: the data of a record whose samples start from data; a record opens no file by itself.
        classifier: the classifier of a record with classifier guidance, with the same weights.
        condition: the conditions of a record with conditions, the same ones.
        device: instead of the record's.
        progress: as in ``draw``.

    Returns:
        Samples; ``same`` tells whether they are bit-equal to those of the record.

    Raises:
        ValueError: another checkpoint, guide or source (the message has both hashes), or a solver that this version
            does not have.
    """
    job = job_again(
        record, stored, solver=solver, guide=guide, source=source, classifier=classifier, condition=condition,
        device=device,
    )  # fmt: skip
    return run_job(job, progress=progress)


def work_of(job: SampleJob) -> dict[str, Callable[..., Any]]:
    """The work of a pool that ``run_job`` shares: the samples and evaluations of a batch, by its number."""

    def batch(number: int) -> tuple[Tensor, ...]:
        return _kept(*job.draw([number]))

    return {"batch": batch}


def run_job(job: SampleJob, pool: Pool | None = None, progress: Progress | None = None) -> Samples:
    """Draw the samples of a run into memory, on the processes of a pool with ``work_of`` the run.

    Raises:
        FloatingPointError: samples that are not finite.
    """
    parts: list[tuple[Tensor, ...]] = []

    def on_step(step: Step) -> None:
        if progress is not None:  # time runs from its first value to 0
            done = 1 - float(step.t.mean()) / max(float(job.run.times[0]), 1e-9)
            progress(min((len(parts) + done) / job.batches, 1.0))

    if pool is None or pool.world == 1:
        for part in job.draw(on_step=on_step if progress is not None else None):
            parts.append(_kept(part))
    else:
        for kept in pool.map("batch", ((number,) for number in range(job.batches))):
            parts.append(kept)
            if progress is not None:
                progress(len(parts) / job.batches)
    x, used, scales = (torch.cat(column) for column in zip(*parts, strict=True))
    counts = {f"{c:.4g}": n for c, n in sorted(Counter(scales.tolist()).items())}
    record = job.finished(digest(x), int(used.min()), int(used.max()), float(used.double().mean()), counts)
    source = None if job.start is None else job.start.x.float().cpu()
    return Samples(x, seeds_of(job.settings.seed, job.n), record, source)


def _kept(part: Solution) -> tuple[Tensor, Tensor, Tensor]:
    """The stored values of a batch: x in float32, the evaluations and the scales, on the CPU."""
    scales = torch.ones(len(part.x), dtype=torch.float64, device="cpu") if part.scales is None else part.scales
    return part.x.float().cpu(), part.nfe.cpu(), scales.cpu()
