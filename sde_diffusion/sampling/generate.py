"""Samples of a stored model, with the record that makes them again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.sampler import check_status, sample_batches, seeds_of
from sde_diffusion.storage import solver_json
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.record_types import SampleRecord
from sde_diffusion.storage.sample_record import KIND, Samples
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import find_tuned
from solvers import Solution, Solver, Step
from solvers.errors import InputError
from solvers.planning import plan
from solvers.plugin import file_hash, find_solver, solver_file


def default_count(shape: Sequence[int]) -> int:
    """Default number of samples of a figure: 64 images, 2,000 points in 2-D.

    >>> default_count((1, 8, 8)), default_count((2,))
    (64, 2000)
    """
    return 2000 if tuple(shape) == (2,) else 64


def solver_for(solver: str | tuple[str, Solver], stored: StoredModel, nfe: int | None) -> tuple[str, Solver]:
    """Name and solver, see ``draw``."""
    if isinstance(solver, tuple):
        return solver
    return solver, find_tuned(stored, nfe) if solver == TUNED else find_solver(solver)[1]


@torch.no_grad()
def draw(
    stored: StoredModel,
    n: int | None = None,
    *,
    solver: str | tuple[str, Solver] = "pf-ode",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
    seed: int = 0,
    eta: float | None = None,
    batch_size: int = 256,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    partial: bool = False,
    device: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Draw samples from a stored model, and write down how.

    Args:
        stored: from ``checkpoint.find``.
        n: number of samples; ``default_count`` of the model's shape by default.
        solver: a name in ``SOLVERS``, ``path/to/file.py:Name``, "tuned" for what ``sdediff tune`` has made for this
            model and budget, or (what to call it, a Solver).
        nfe: network evaluations per sample; 20 unless steps or the times are given.
        steps: grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seed: seed of the set.
        eta: noise level; 1 for stochastic solvers and 0 for the others by default.
        batch_size: samples integrated together.
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: w of classifier-free guidance towards the labels, see ``guidance.Guided``. Where it is not 1, every
            call of the network counts two evaluations.
        partial: whether times that do not lead from 1 to 0 are taken, see ``sample``.
        device: a name in ``DEVICES``.
        progress: called with the share of the work that is done, after every step.

    Raises:
        ValueError, FloatingPointError: as ``sde_diffusion.sampling.sampler``.
        CheckpointError: the weights do not fit the described network.
    """
    file = solver_file(solver if isinstance(solver, str) else solver[0])
    name, instance = solver_for(solver, stored, nfe)
    place = device_for(device)
    model = load(stored, device=str(place))
    if model.shape is None:
        raise CheckpointError(f"{stored.path} does not say the shape of a sample")
    n = default_count(model.shape) if n is None else n
    model, condition = _conditional(model, labels, guidance, n)
    eta = float(instance.stochastic) if eta is None else eta
    parts: list[Solution] = []
    batches = math.ceil(n / batch_size) if n >= 1 and batch_size >= 1 else 0

    def on_step(step: Step) -> None:
        if progress is not None:  # time runs from 1 to 0, so 1 - t is the share done
            progress(min((len(parts) + 1 - float(step.t.mean())) / batches, 1.0))

    for part in sample_batches(
        model,
        n,
        solver=instance,
        nfe=nfe,
        steps=steps,
        grid=grid,
        seed=seed,
        batch_size=batch_size,
        eta=eta,
        partial=partial,
        on_step=on_step,
        condition=condition,
    ):
        check_status(part, start=len(parts) * batch_size)
        parts.append(part)
    x = torch.cat([part.x for part in parts]).float().cpu()
    used = torch.cat([part.nfe for part in parts])
    spacing = instance.grid if grid is None else grid
    ran, times = plan(model.sde.reverse(model, eta, **condition), x.shape[1:], instance, grid=parts[0].times)
    record: SampleRecord = {
        "format": FORMAT,
        "kind": KIND,
        "checkpoint": {
            "path": name_of(stored),
            "step": stored.step,
            "sha256": stored.sha256,
        },
        "model": stored.model,
        "data": stored.data,
        "n": n,
        "shape": list(x.shape[1:]),
        "seed": seed,
        "seeds": "seed * 2^32 + k for sample k = 0 to n - 1",
        "labels": None if labels is None else list(labels),
        "guidance": guidance,
        "solver": {"name": name, **solver_json.describe(ran)},
        "grid": {
            "name": spacing if isinstance(spacing, str) else None,
            "times": times.tolist(),
        },
        "eta": eta,
        "nfe": {
            "asked": nfe,
            "least": int(used.min()),
            "most": int(used.max()),
            "mean": float(used.double().mean()),
        },
        "batch_size": batch_size,
        "x": {"dtype": "float32", "sha256": hashlib.sha256(x.numpy().tobytes()).hexdigest()},
        "machine": {"device": place.type, "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if file is not None:
        record["solver_file_sha256"] = file_hash(file)
    if stored.source_sha256 is not None:
        record["model_file_sha256"] = stored.source_sha256
    return Samples(x, seeds_of(seed, n), record)


def _conditional(
    model: ScoreModel, labels: Sequence[int] | None, guidance: float, n: int
) -> tuple[ScoreModel, dict[str, Tensor]]:
    """The model that is sampled, and the condition of each sample."""
    if labels is None:
        if guidance != 1:
            raise InputError(f"guidance {guidance} needs labels to guide to; name them: --label 3, or --label all")
        return model, {}
    classes = getattr(model.network, "settings", {}).get("classes")
    if classes is None:
        raise InputError("the model was trained without labels and cannot take one; train with --labels")
    if not labels or not all(0 <= label < classes for label in labels):
        raise InputError(f"the labels of this model run from 0 to {classes - 1}; got {list(labels)}")
    label = torch.tensor(labels, device="cpu").repeat(-(-n // len(labels)))[:n]
    return (model if guidance == 1 else Guided(model, guidance)), {"label": label}


def redraw(
    record: SampleRecord,
    stored: StoredModel,
    *,
    solver: str | None = None,
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Make the samples of a record again; x is bit-equal on the same machine and versions.

    Args:
        record: from ``read_record``.
        stored: the model, with the same weights.
        solver: ``path/to/file.py:Name`` of a record whose solver comes from a file. A record never runs a file: only
            one that is named here is run, after its SHA-256 was compared with that of the record.
        device: instead of the record's.
        progress: as in ``draw``.

    Returns:
        Samples; ``same`` tells whether they are bit-equal to those of the record.

    Raises:
        ValueError: another checkpoint (the message has both hashes), or a solver that this version
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
        solver=(name, instance),
        nfe=record["nfe"]["asked"] if instance.adaptive else None,
        grid=record["grid"]["times"],
        seed=record["seed"],
        eta=record["eta"],
        batch_size=record["batch_size"],
        labels=record.get("labels"),
        guidance=record.get("guidance", 1.0),
        partial=(record["grid"]["times"][0], record["grid"]["times"][-1]) != (1.0, 0.0),
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
