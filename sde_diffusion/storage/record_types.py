"""Types of the files of sdediff, for their writers, readers and users.

config.json        ``RunConfig``           a run
state.json         ``CheckpointState``     a checkpoint
MODEL.safetensors  ``ExportHeader``        the header of an exported model
samples.json       ``SampleRecord``        a set of samples
shard-N.json       ``ShardRecord``         a part of a large set
evaluation.json    ``EvaluationRecord``    the quality of samples
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from sde_diffusion.data.normalization import NormalizationEntry
from sde_diffusion.storage.typed_json import Between

MOST_SAMPLES = 10_000_000  # of one set
Count = Annotated[int, Between(0, 2**53)]
Steps = Annotated[int, Between(0, 10**9)]
Samples = Annotated[int, Between(1, MOST_SAMPLES)]


class SdeEntry(TypedDict):
    """A process: its name in ``SDES`` and its settings."""

    name: str
    settings: dict[str, Any]


# "class" is a word of the language, so these have no class statement.
NetworkEntry = TypedDict("NetworkEntry", {"name": str | None, "class": str, "settings": dict[str, Any] | None})
"""A network: its name in ``NETWORKS``, or None and its class alone."""

SolverEntry = TypedDict("SolverEntry", {"class": str, "settings": dict[str, Any]})
"""A solver: the name of its class and the settings."""

NamedSolverEntry = TypedDict("NamedSolverEntry", {"name": str, "class": str, "settings": dict[str, Any]})
"""A solver with the name by which it was requested."""


class LatentEntry(TypedDict):
    """The autoencoder of a latent model: the SHA-256 of its weights, and the shape of a decoded sample."""

    autoencoder: str
    shape: list[Annotated[int, Between(1, 2**31)]]


class _ModelDescriptionOptional(TypedDict, total=False):
    normalization: NormalizationEntry | None
    sampler: SolverEntry | None
    latent: LatentEntry | None


class ModelDescription(_ModelDescriptionOptional):
    """The description of a model without its weights; without a normalization the data are not scaled.

    ``sampler`` is the solver of a distilled model, ``latent`` the autoencoder of a latent model.
    """

    sde: SdeEntry
    network: NetworkEntry
    predicts: str
    sigma_data: Annotated[float, Between(1e-30, 1e30)]
    shape: list[Annotated[int, Between(1, 2**31)]] | None


class _ConditionEntryOptional(TypedDict, total=False):
    dropped: Annotated[float, Between(0, 1)]
    noise: Annotated[float, Between(0, 1)]
    captions: list[str]


class ConditionEntry(_ConditionEntryOptional):
    """Conditions of samples: those of training data, or those that samples were drawn for.

    ``dropped`` is the probability with which training dropped one; ``noise`` the largest noise level of condition
    images in training, or the level at which samples were drawn. ``captions`` are those of samples, if there are few.
    """

    name: str
    kind: Literal["vector", "image", "tokens", "caption"]
    shape: list[Annotated[int, Between(1, 2**31)]]
    count: Count
    sha256: str


class DataEntry(TypedDict, total=False):
    """The data of a model; empty if unknown. ``source`` is the fingerprint of the samples, if they are latents."""

    name: str
    fingerprint: str
    samples: Count
    class_names: list[str]
    condition: ConditionEntry
    layout: str
    source: str


class CheckpointEntry(TypedDict):
    """The weights that something was made with."""

    path: str
    step: Steps | None
    sha256: str


class ObjectiveEntry(TypedDict, total=False):
    """The objective of a distillation: its method, settings, and the weights of the teacher."""

    method: str
    settings: dict[str, Any]
    teacher: CheckpointEntry | None


class _RunConfigOptional(TypedDict, total=False):
    versions: dict[str, str]
    objective: ObjectiveEntry
    features: str


class RunConfig(_RunConfigOptional):
    """config.json; ``train`` has the fields of ``TrainConfig``."""

    format: int
    train: dict[str, Any]
    model: ModelDescription
    data: DataEntry


class FileEntry(TypedDict):
    """A file of a checkpoint."""

    bytes: Count
    sha256: str


class CheckpointState(TypedDict):
    """state.json of a checkpoint; that of a checkpoint in training also has what ``Trainer.state`` returns."""

    format: int
    step: Steps
    model: ModelDescription
    data: DataEntry
    files: dict[str, FileEntry]


class _UnloggedOptional(TypedDict, total=False):
    skipped: Count


class Unlogged(_UnloggedOptional):
    """Figures of the steps since the last line of the log."""

    loss: list[float]
    grad_norm: list[float]


class _TrainingStateOptional(TypedDict, total=False):
    scaler: dict[str, float]


class TrainingState(_TrainingStateOptional):
    """Entries of a checkpoint beyond ``CheckpointState``, for resuming."""

    step: Steps
    unlogged: Unlogged


class _ExportHeaderOptional(TypedDict, total=False):
    data: DataEntry
    step: Steps | None


class ExportHeader(_ExportHeaderOptional):
    """The description in the header of an exported model."""

    format: int
    model: ModelDescription


class GridEntry(TypedDict):
    """A time grid: its name, None where the times were given, and the times."""

    name: str | None
    times: list[float]


class NfeEntry(TypedDict):
    """Network evaluations of a sample: the limit, and the used number."""

    asked: Steps | None
    least: Steps
    most: Steps
    mean: Annotated[float, Between(0, 10**9)]


class ArrayEntry(TypedDict):
    """The samples as bytes."""

    dtype: str
    sha256: str


class MachineEntry(TypedDict):
    """The machine on which samples were computed."""

    device: str
    threads: Count


class GuidanceEntry(TypedDict, total=False):
    """Settings of guidance besides its scale: ``sampling.guidance_settings.GuidanceSettings``."""

    interval: list[float]
    rescale: float
    eta_parallel: float
    norm: float
    guide: CheckpointEntry
    plus_plus: bool
    classifier: CheckpointEntry
    classifier_scale: float
    condition: ConditionEntry


ShardForm = Literal["npz", "safetensors", "webdataset"]


class ShardsEntry(TypedDict):
    """The division of samples into files: samples in each, and the format of the files."""

    size: Samples
    form: ShardForm


class ShardRecord(TypedDict):
    """The record beside a shard: its samples, its file and its evaluations.

    ``sha256`` is of the file, ``x_sha256`` of the float32 bytes of the samples.
    """

    format: int
    kind: str
    first: Count
    n: Samples
    bytes: Count
    sha256: str
    x_sha256: str
    least: Steps
    most: Steps
    sum: Count


class StartEntry(TypedDict):
    """The data that samples start from, noised to the time ``strength``, by the SHA-256 of their float32 values."""

    strength: Annotated[float, Between(0, 1)]
    sha256: str


class SpeedEntry(TypedDict):
    """The arithmetic of the network where it is not float32, or is compiled."""

    precision: str
    compiled: bool


class _SampleRecordOptional(TypedDict, total=False):
    speed: SpeedEntry
    shards: ShardsEntry
    labels: list[int] | None
    guidance: float
    guidance_rule: GuidanceEntry
    start: StartEntry
    choice: dict[str, Any]
    scales: dict[str, int]
    solver_file_sha256: str
    model_file_sha256: str


class SampleRecord(_SampleRecordOptional):
    """samples.json: everything that is needed to make the same samples again.

    ``choice`` says why ``--tolerance`` took this solver, ``solver_file_sha256`` from which file it comes where it is
    one of the user's own, ``start`` which data the samples start from, ``scales`` how many samples ran for data of
    which scale (``solvers.fitted.seen_scale``); records of the first versions have no labels and
    guidance.
    """

    format: int
    kind: str
    checkpoint: CheckpointEntry
    model: ModelDescription
    data: DataEntry
    n: Samples
    shape: list[Count]
    seed: Annotated[int, Between(0, 2**31 - 1)]
    seeds: str
    solver: NamedSolverEntry
    grid: GridEntry
    eta: float
    nfe: NfeEntry
    batch_size: Annotated[int, Between(1, 2**53)]
    x: ArrayEntry
    machine: MachineEntry
    versions: dict[str, str]


class _EvaluationRecordOptional(TypedDict, total=False):
    budget: dict[str, Any]


class EvaluationRecord(_EvaluationRecordOptional):
    """evaluation.json: figures of samples with standard errors.

    ``source`` is the model or file, ``reference`` the data and ``features`` the extractor; ``runs`` has an entry for
    each solver and NFE, ``budget`` the terms of the error.
    """

    format: int
    kind: str
    source: dict[str, Any]
    reference: dict[str, Any]
    features: dict[str, Any]
    runs: list[dict[str, Any]]
    versions: dict[str, str]


class _ReferenceDataOptional(TypedDict, total=False):
    values: str
    range: list[float]


class ReferenceData(_ReferenceDataOptional):
    """The real samples of a reference."""

    name: str
    fingerprint: str
    split: str
    n: Count
    shape: list[Count]


class ExtractorEntry(TypedDict):
    """The facts that must agree for features to be comparable."""

    name: str
    sha256: str
    preprocessing: str


class ReferenceRecord(TypedDict):
    """The header of a file of feature statistics."""

    format: int
    kind: str
    n: Count
    data: ReferenceData
    extractor: ExtractorEntry
    sha256: str


class WeightsEntry(TypedDict):
    """The weights that a solver was tuned for."""

    sha256: str
    step: Steps | None


class _LossEntryOptional(TypedDict, total=False):
    extractor: ExtractorEntry


class LossEntry(_LossEntryOptional):
    """What tuning minimised: "rmse", or "features" of an extractor."""

    name: str
