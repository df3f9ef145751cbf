"""Samples of a stored model, with the record that makes them again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch

from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.sampler import check_status, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.storage import solver_json
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.record_types import SampleRecord
from sde_diffusion.storage.sample_record import SAMPLES_KIND, Samples
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import find_tuned
from solvers import Solution, Solver, Step
from solvers.errors import InputError
from solvers.plugin import file_hash, find_solver, solver_file


def default_count(shape: Sequence[int]) -> int:
    """Default number of samples of a figure: 64 images, 2,000 points in 2-D.

    >>> default_count((1, 8, 8)), default_count((2,))
    (64, 2000)
    """
    return 2000 if tuple(shape) == (2,) else 64


def settings_for(stored: StoredModel, settings: SamplingSettings, condition: str = "") -> SamplingSettings:
    """The settings with the solver that a name stands for.

    "tuned" is what ``sdediff tune`` has made for the model and the condition, a tag of ``GuidanceSettings``.
    """
    if isinstance(settings.solver, Solver):
        return settings
    tuned = settings.solver == TUNED
    solver = find_tuned(stored, settings.nfe, condition) if tuned else find_solver(settings.solver)[1]
    return settings.with_solver(solver, settings.called)


@torch.no_grad()
def draw(
    stored: StoredModel,
    n: int | None = None,
    settings: SamplingSettings | None = None,
    *,
    labels: Sequence[int] | None = None,
    guidance: float | GuidanceSettings = 1.0,
    device: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Draw samples from a stored model, and write down how.

    Args:
        stored: from ``checkpoint.find``.
        n: number of samples; ``default_count`` of the model's shape by default.
        settings: the settings of the run; the solver may also be "tuned".
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: w of classifier-free guidance towards the labels, or all settings of guidance. Where w is not 1, every
            prediction counts two evaluations.
        device: a name in ``DEVICES``.
        progress: called with the share of the work that is done, after every step.

    Raises:
        ValueError, FloatingPointError: as ``sde_diffusion.sampling.sampler``.
        CheckpointError: the weights do not fit the described network.
    """
    asked = settings or SamplingSettings()
    file = solver_file(asked.called)
    rule = guidance if isinstance(guidance, GuidanceSettings) else GuidanceSettings(guidance)
    settings = settings_for(stored, asked, rule.tag(labels))
    place = device_for(device)
    model = load(stored, device=str(place))
    if model.shape is None:
        raise CheckpointError(f"{stored.path} does not say the shape of a sample")
    shape = model.shape
    n = default_count(model.shape) if n is None else n
    model, condition = guided_model(model, n, labels, rule)
    run = settings.resolve(model, shape)
    parts: list[Solution] = []
    size = settings.batch_size

    def on_step(step: Step) -> None:
        if progress is not None:  # time runs from 1 to 0, so 1 - t is the share done
            progress(min((len(parts) + 1 - float(step.t.mean())) / math.ceil(n / size), 1.0))

    for part in sample_batches(model, n, settings, on_step=on_step, condition=condition):
        check_status(part, start=len(parts) * size)
        parts.append(part)
    x = torch.cat([part.x for part in parts]).float().cpu()
    used = torch.cat([part.nfe for part in parts])
    assert isinstance(settings.solver, Solver)
    spacing = settings.solver.grid if settings.grid is None else settings.grid
    record: SampleRecord = {
        "format": FORMAT,
        "kind": SAMPLES_KIND,
        "checkpoint": {
            "path": name_of(stored),
            "step": stored.step,
            "sha256": stored.sha256,
        },
        "model": stored.model,
        "data": stored.data,
        "n": n,
        "shape": list(x.shape[1:]),
        "seed": settings.seed,
        "seeds": "seed * 2^32 + k for sample k = 0 to n - 1",
        "labels": None if labels is None else list(labels),
        "guidance": rule.scale,
        "solver": {"name": settings.called, **solver_json.describe(run.solver)},
        "grid": {
            "name": spacing if isinstance(spacing, str) else None,
            "times": run.times.tolist(),
        },
        "eta": run.eta,
        "nfe": {
            "asked": settings.nfe,
            "least": int(used.min()),
            "most": int(used.max()),
            "mean": float(used.double().mean()),
        },
        "batch_size": size,
        "x": {"dtype": "float32", "sha256": hashlib.sha256(x.numpy().tobytes()).hexdigest()},
        "machine": {"device": place.type, "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if entry := rule.entry():
        record["guidance_rule"] = entry
    if file is not None:
        record["solver_file_sha256"] = file_hash(file)
    if stored.source_sha256 is not None:
        record["model_file_sha256"] = stored.source_sha256
    return Samples(x, seeds_of(settings.seed, n), record)


def redraw(
    record: SampleRecord,
    stored: StoredModel,
    *,
    solver: str | None = None,
    guide: StoredModel | None = None,
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Make the samples of a record again; x is bit-equal on the same machine and versions.

    Args:
        record: from ``read_record``.
        stored: the model, with the same weights.
        solver: ``path/to/file.py:Name`` of a record whose solver comes from a file. A record never runs a file: only
            one that is named here is run, after its SHA-256 was compared with that of the record.
        guide: the weaker model of a record with autoguidance, with the same weights.
        device: instead of the record's.
        progress: as in ``draw``.

    Returns:
        Samples; ``same`` tells whether they are bit-equal to those of the record.

    Raises:
        ValueError: another checkpoint or guide (the message has both hashes), or a solver that this version
            does not have.
    """
    wanted = record["checkpoint"]
    if stored.sha256 != wanted["sha256"]:
        raise InputError(
            f"the record was made with the weights {wanted['sha256']} ({wanted['path']}), but "
            f"{stored.path} has {stored.sha256}; give the model of the record: "
            "sdediff sample MODEL --record FILE"
        )
    if record.get("model_file_sha256") not in (None, stored.source_sha256):
        raise InputError(
            f"{stored.path} is not the code that made the samples of the record: its SHA-256 is "
            f"{stored.source_sha256}, "
            f"that of the record is {record['model_file_sha256']}"
        )
    name, instance = _solver(record, solver)
    new = draw(
        stored,
        record["n"],
        SamplingSettings(
            instance,
            record["nfe"]["asked"] if instance.adaptive else None,
            grid=record["grid"]["times"],
            eta=record["eta"],
            seed=record["seed"],
            batch_size=record["batch_size"],
            name=name,
            partial=(record["grid"]["times"][0], record["grid"]["times"][-1]) != (1.0, 0.0),
        ),
        labels=record.get("labels"),
        guidance=GuidanceSettings.from_entry(record.get("guidance", 1.0), record.get("guidance_rule", {}), guide),
        device=device or record["machine"]["device"],
        progress=progress,
    )
    again: SampleRecord = {**new.record, "grid": record["grid"], "nfe": record["nfe"]}
    if "choice" in record:
        again["choice"] = record["choice"]
    return Samples(new.x, new.seeds, again)


def _solver(record: SampleRecord, named: str | None) -> tuple[str, Solver]:
    """Name and solver of a record; a file is run only if the caller has named it."""
    entry = record["solver"]
    file = solver_file(entry["name"])
    if named is None:
        try:
            return entry["name"], solver_json.restore(entry)
        except ValueError:
            if file is None:
                raise
        raise InputError(
            f"the solver of the record is {entry['class']} of the file {file}, and a record never runs a file by "
            f"itself; if you trust it, name it: --solver {entry['name']}"
        )
    own = solver_file(named)
    if file is None or own is None:
        where = entry["name"] if file is None else f"{file}, and you name {named}"
        raise InputError(
            "with a record, --solver names the file of your own solver and nothing else; the solver of the "
            f"record is {where}"
        )
    if record.get("solver_file_sha256") not in (None, found := file_hash(own)):
        raise InputError(
            f"{own} is not the file that made the samples of the record: its SHA-256 is {found}, that of the record is "
            f"{record['solver_file_sha256']}"
        )
    return named, solver_json.restore(entry, (find_solver(named)[1],))
