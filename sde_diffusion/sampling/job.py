"""A sampling run that is ready: the model on its device, the solver with its times, and the record of all of it.

Samples are cut into batches by their index alone: batch b holds samples b B to (b + 1) B - 1 for the batch size B. A
batch is the unit of work. Whoever runs it, in whatever order, its samples have the same bits on machines of one kind
with one number of threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.models.speed import Speed
from sde_diffusion.networks.point_transformer import PointTransformer
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.sampler import check_count, check_status, sample_batches
from sde_diffusion.sampling.settings import SamplingRun, SamplingSettings
from sde_diffusion.storage import solver_json
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.record_types import SampleRecord, ShardsEntry
from sde_diffusion.storage.sample_record import SAMPLES_KIND
from sde_diffusion.storage.tuned_solver import NAME as TUNED
from sde_diffusion.storage.tuned_solver import find_tuned
from solvers import Solution, Solver, Step
from solvers.errors import InputError, require_whole
from solvers.plugin import file_hash, find_solver, solver_file


@dataclass(frozen=True, eq=False)
class SampleJob:
    """A sampling run of a stored model.

    Attributes:
        model: the model on its device, with its guidance.
        condition: its conditions, a row for each sample.
        n: number of samples.
        settings: settings of the run, with the solver that runs.
        run: the solver and its times.
        record: how the samples are made; what they are is added at the end (``finished``).
        start: data to start from instead of pure noise.
    """

    model: ScoreModel
    condition: Mapping[str, Any]
    n: int
    settings: SamplingSettings
    run: SamplingRun
    record: SampleRecord
    start: NoisedStart | None = None

    @property
    def batches(self) -> int:
        """Number of batches."""
        return math.ceil(self.n / self.settings.batch_size)

    @torch.no_grad()
    def draw(
        self, which: Iterable[int] | None = None, on_step: Callable[[Step], None] | None = None
    ) -> Iterator[Solution]:
        """The solutions of some batches, by number; of all by default.

        Raises:
            FloatingPointError: samples that are not finite.
        """
        numbers = list(range(self.batches) if which is None else which)
        made = sample_batches(
            self.model,
            self.n,
            self.settings,
            on_step=on_step,
            condition=self.condition,
            which=numbers,
            start=self.start,
        )
        for number, part in zip(numbers, made, strict=True):
            check_status(part, start=number * self.settings.batch_size)
            yield part

    def finished(
        self, sha256: str, least: int, most: int, mean: float, scales: dict[str, int] | None = None
    ) -> SampleRecord:
        """The record of samples whose float32 bytes have a SHA-256, and whose evaluations have this range and mean.

        ``scales`` counts the samples that ran for data of each scale. Where all ran for 1, the record has the solver
        for that scale alone, which does not change with pf-ode.
        """
        entry = self.record["nfe"]
        found: Any = {} if scales is None else {"scales": scales}
        if scales is not None and scales.keys() == {"1"}:
            one = solver_json.describe_solver(self.run.solver.on_grid())
            found = {"solver": {"name": self.record["solver"]["name"], **one}}
        return {
            **self.record,
            **found,
            "nfe": {"asked": entry["asked"], "least": least, "most": most, "mean": mean},
            "x": {"dtype": "float32", "sha256": sha256},
        }


def default_count(shape: Sequence[int]) -> int:
    """Default number of samples of a figure: 64 images, 2,000 points in 2-D.

    >>> default_count((1, 8, 8)), default_count((2,))
    (64, 2000)
    """
    return 2000 if tuple(shape) == (2,) else 64


DISTILLED = "distilled"  # what the sampler of a distilled model is called


def settings_for(stored: StoredModel, settings: SamplingSettings, condition: str = "") -> SamplingSettings:
    """The settings with the solver that a name stands for.

    Without a name it is the sampler of a distilled model, else pf-ode; "tuned" is what ``sdediff tune`` has made for
    the model and the condition, a tag of ``GuidanceSettings``.
    """
    if settings.solver is None and (own := stored.model.get("sampler")) is not None:
        return settings.with_solver(solver_json.restore_solver(own), DISTILLED)
    if settings.solver is None or isinstance(settings.solver, Solver):
        return settings.with_solver(settings.chosen(), settings.called)
    tuned = settings.solver == TUNED
    solver = find_tuned(stored, settings.nfe, condition) if tuned else find_solver(settings.solver)[1]
    return settings.with_solver(solver, settings.called)


def new_job(
    stored: StoredModel,
    n: int | None = None,
    settings: SamplingSettings | None = None,
    *,
    labels: Sequence[int] | None = None,
    guidance: float | GuidanceSettings = 1.0,
    start: NoisedStart | None = None,
    device: str = "auto",
    shards: ShardsEntry | None = None,
    speed: Speed | None = None,
    points: int | None = None,
) -> SampleJob:
    """Load the model and resolve the settings of a run.

    Args:
        stored: from ``checkpoint.checkpoint_at``.
        n: number of samples; ``default_count`` of the model's shape by default.
        settings: the settings of the run; the solver may also be "tuned".
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: w of classifier-free guidance towards the labels, or all settings of guidance.
        start: data to start from instead of pure noise.
        device: a name in ``DEVICES``.
        shards: how the samples are cut into files, where they are; they need not fit into memory then.
        speed: arithmetic of the network; float32, not compiled by default.
        points: number of points of a cloud, for a network of point clouds; that of training by default.

    Raises:
        ValueError: arguments out of range or in conflict.
        CheckpointError: the weights do not fit the described network.
    """
    asked = settings or SamplingSettings()
    file = solver_file(asked.called)
    rule = guidance if isinstance(guidance, GuidanceSettings) else GuidanceSettings(guidance)
    settings = settings_for(stored, asked, rule.tag(labels))
    place = device_for(device)
    model = load(stored, device=str(place))
    speed = speed or Speed()
    speed.apply(model.network)
    if model.shape is None:
        raise CheckpointError(f"{stored.path} does not say the shape of a sample")
    if points is not None:
        model.shape = cloud_shape(model, points)
    shape = model.shape
    made = model.sample_shape or shape
    if start is not None:
        start.check_shape(made)
    n = default_count(made) if n is None else n
    check_count(n, shape if shards is None else ())
    model, condition = guided_model(model, n, labels, rule)
    run = settings.resolve(model, shape) if start is None else start.resolve(settings, model, shape)
    assert isinstance(settings.solver, Solver)
    spacing = settings.solver.grid if settings.grid is None else settings.grid
    record: SampleRecord = {
        "format": FORMAT,
        "kind": SAMPLES_KIND,
        "checkpoint": {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256},
        "model": stored.model,
        "data": stored.data,
        "n": n,
        "shape": list(made),
        "seed": settings.seed,
        "seeds": "seed * 2^32 + k for sample k = 0 to n - 1",
        "labels": None if labels is None else list(labels),
        "guidance": rule.scale,
        "solver": {"name": settings.called, **solver_json.describe_solver(run.solver)},
        "grid": {"name": spacing if isinstance(spacing, str) else None, "times": run.times.tolist()},
        "eta": run.eta,
        "nfe": {"asked": settings.nfe, "least": 0, "most": 0, "mean": 0.0},
        "batch_size": settings.batch_size,
        "x": {"dtype": "float32", "sha256": ""},
        "machine": {"device": place.type, "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if shards is not None:
        record["shards"] = shards
    if not speed.plain:
        record["speed"] = {"precision": speed.precision, "compiled": speed.compiled}
    if entry := rule.entry():
        record["guidance_rule"] = entry
    if start is not None:
        record["start"] = {"strength": start.strength, "sha256": digest(start.x)}
    if file is not None:
        record["solver_file_sha256"] = file_hash(file)
    if stored.source_sha256 is not None:
        record["model_file_sha256"] = stored.source_sha256
    return SampleJob(model, condition, n, settings, run, record, start)


def cloud_shape(model: ScoreModel, points: int) -> tuple[int, ...]:
    """The shape of clouds of another number of points.

    Raises:
        ValueError: fewer than one point, or a model of other data than point clouds.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.networks import build
    >>> network = build("points", shape=(3, 128), width=8, depth=1, heads=2)
    >>> cloud_shape(ScoreModel(network, VPSDE(), shape=(3, 128)), 50)
    (3, 50)
    """
    if getattr(model.network, "name", None) != PointTransformer.name or model.shape is None:
        raise InputError(
            f"the number of points is free for networks of point clouds alone (--network points); samples of this "
            f"model have the shape {model.shape}: leave out --points"
        )
    require_whole("points", points, 1, 2**20)
    return (model.shape[0], points)


def digest(x: Tensor) -> str:
    """The SHA-256 of samples as float32."""
    return hashlib.sha256(x.float().cpu().numpy().tobytes()).hexdigest()


def job_again(
    record: SampleRecord,
    stored: StoredModel,
    *,
    solver: str | None = None,
    guide: StoredModel | None = None,
    source: Tensor | None = None,
    classifier: StoredModel | None = None,
    condition: GivenCondition | None = None,
    device: str | None = None,
) -> SampleJob:
    """The run of a record; the arguments and errors are those of ``generate.redraw``."""
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
    own = stored.model["shape"]
    clouds = stored.model["network"]["name"] == PointTransformer.name and record["shape"] != own
    start = _start(record, source)
    times = record["grid"]["times"]
    job = new_job(
        stored,
        record["n"],
        SamplingSettings(
            instance,
            record["nfe"]["asked"] if instance.adaptive else None,
            grid=times,
            eta=record["eta"],
            seed=record["seed"],
            batch_size=record["batch_size"],
            name=name,
            partial=start is not None or (times[0], times[-1]) != (1.0, 0.0),
        ),
        labels=record.get("labels"),
        guidance=GuidanceSettings.from_entry(
            record.get("guidance", 1.0), record.get("guidance_rule", {}), guide, classifier, condition
        ),
        start=start,
        device=device or record["machine"]["device"],
        shards=record.get("shards"),
        speed=Speed(**record["speed"]) if "speed" in record else None,
        points=record["shape"][-1] if clouds else None,
    )
    # What was asked for, as it was put: the name of the grid and the NFE, whose times and steps are used here.
    job.record["grid"], job.record["nfe"]["asked"] = record["grid"], record["nfe"]["asked"]
    if "choice" in record:
        job.record["choice"] = record["choice"]
    return job


def _start(record: SampleRecord, source: Tensor | None) -> NoisedStart | None:
    """The start of a record's samples; its data are compared with the given ones."""
    entry = record.get("start")
    if entry is None:
        if source is not None:
            raise InputError("the samples of the record start from pure noise; leave out --from")
        return None
    if source is None:
        raise InputError(
            f"the samples of the record start from data with the SHA-256 {entry['sha256']}; name them: --from FILE"
        )
    if (found := digest(source)) != entry["sha256"]:
        raise InputError(
            f"the samples of the record start from other data: their SHA-256 is {entry['sha256']}, that of the given "
            f"ones is {found}"
        )
    return NoisedStart(source, entry["strength"])


def _solver(record: SampleRecord, named: str | None) -> tuple[str, Solver]:
    """Name and solver of a record; a file is run only if the caller has named it."""
    entry = record["solver"]
    file = solver_file(entry["name"])
    if named is None:
        try:
            return entry["name"], solver_json.restore_solver(entry)
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
    return named, solver_json.restore_solver(entry, (find_solver(named)[1],))
