r"""Cascades on disk: a folder with a run for each stage, trained from one file and sampled as one model.

    runs/<name>/cascade.json           the stages: folder, size, evaluations, noise level
    runs/<name>/splits.json            splits of the evaluations that ``tune`` has found
    runs/<name>/stage-1-7/             the run of a stage, as ``train`` writes it
    runs/<name>/samples/...            samples

A stage that is finished is kept when the training is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from sde_diffusion.cascade.drawing import StageModel, check_chain
from sde_diffusion.cascade.split_file import find_split
from sde_diffusion.cascade.stages import Stage, read_cascade, split_nfe, stage_data, stage_folder
from sde_diffusion.data import load_data
from sde_diffusion.files.writing import write_file
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, read_json, to_json
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.run_folder import CASCADE, checkpoints, trained_noise
from sde_diffusion.storage.typed_json import Between, checked
from sde_diffusion.training.autoencoding.readers import OWN
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import Setup, merged, set_up
from sde_diffusion.training.training_run import train
from solvers.errors import ExistsError, InputError, NotFoundError

FILE = CASCADE
KIND = "sdediff cascade"


class StageEntry(TypedDict):
    """A stage in cascade.json."""

    size: Annotated[int, Between(1, 2**31)]
    nfe: Annotated[int, Between(1, 10**6)]
    noise: Annotated[float, Between(0, 1)]


class CascadeEntry(TypedDict):
    """cascade.json."""

    format: int
    kind: str
    stages: list[StageEntry]


def is_cascade(path: str | os.PathLike[str] | None) -> bool:
    """Whether a folder is a cascade.

    >>> is_cascade("no-such-folder")
    False
    """
    return path is not None and (Path(path) / FILE).is_file()


def train_cascade(
    file: str | os.PathLike[str],
    folder: Path,
    *,
    typed: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Train the stages of a file, one after the other, each in its own run.

    Args:
        file: a file of ``cascade.stages``.
        folder: new, or that of the cascade to resume.
        typed: options that replace those of the file, in every stage.
        resume: continue; finished stages are kept.
        progress: show bars.
        tell: takes a line for each stage.

    Returns:
        The runs of the stages.

    Raises:
        FileExistsError: ``folder`` exists and ``resume`` is False.
        FileNotFoundError: ``resume``, and no cascade is there.
        ValueError: options or sizes that do not fit.
    """
    common, stages = read_cascade(file)
    common = merged(common, typed or {})
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise ExistsError(f"{folder} exists already; continue it with --resume, or choose another folder with --out")
    if resume and not (folder / FILE).is_file():
        raise NotFoundError(f"nothing to resume at {folder}: there is no {FILE}; start a cascade without --resume")
    if resume:
        _check_same([stage.size for stage in stages], folder)
    data = load_data(common.pop("data", "digits"), common.pop("data_dir", None), labels=bool(common.get("labels")))
    every = stage_data(data, [stage.size for stage in stages])
    made = [
        _set_up(common, stage, stage_folder(folder, k, stage.size), own)  # all, so that a fault is found at once
        for k, (stage, own) in enumerate(zip(stages, every, strict=True), 1)
    ]
    check_chain([one.model for one in made])
    for stage, one in zip(stages, made, strict=True):
        _check_noise(stage.noise, one.config.condition_noise, f"stage {stage.size} of {file}: noise")
    folder.mkdir(parents=True, exist_ok=True)
    entry: CascadeEntry = {
        "format": FORMAT,
        "kind": KIND,
        "stages": [{"size": stage.size, "nfe": stage.nfe, "noise": stage.noise} for stage in stages],
    }
    write_file(folder / FILE, to_json(entry), replace=True)
    for number, one in enumerate(made, 1):
        started = bool(checkpoints(one.out))
        what = "resumed" if started else "new"
        tell(f"stage {number} of {len(made)}, {what}: {one.data.describe()}; {one.config.steps} steps, run {one.out}")
        train(one.model, one.data, one.config, out=one.out, resume=started, progress=progress)
    return [one.out for one in made]


def _check_noise(level: float, trained: float, what: str) -> None:
    """Refuse a noise level of sampling that training never had."""
    if level > trained:
        raise InputError(
            f"{what} = {level:g} is the noise level of the image before in sampling, and training goes up to "
            f"condition_noise = {trained:g}; lower the one or raise the other"
        )


def _check_same(sizes: list[int], folder: Path) -> None:
    """Refuse to resume a cascade with other sizes, which would leave its stages behind."""
    before = [entry["size"] for entry in _entries(folder)]
    if before != sizes:
        raise InputError(
            f"the cascade in {folder} has stages of {before}, the file of {sizes}; resume it with those sizes, or "
            "start a new one (--out)"
        )


def _set_up(common: dict[str, Any], stage: Stage, run: Path, data: Any) -> Setup:
    options = merged(common, stage.options)
    names = ["sde", "predicts", "process", "network", *(name for name in TrainConfig().to_dict() if name not in OWN)]
    if unknown := sorted(set(options) - set(names)):
        raise InputError(
            f"stage {stage.size} of the cascade has no option '{unknown[0]}'; its options: {', '.join(names)}"
        )
    if data.condition is None:
        options = {name: v for name, v in options.items() if name not in ("condition_noise", "drop_condition")}
    else:
        options = {"drop_condition": 0.0, **options}
    return set_up({**options, "out": str(run)}, given_data=data)


def _entries(folder: Path) -> list[StageEntry]:
    path = folder / FILE
    content = read_json(path)
    if content.get("kind") != KIND:
        raise CheckpointError(f"{path} is no file of a cascade")
    return checked(content, CascadeEntry, str(path))["stages"]


def read_stages(folder: Path) -> tuple[list[StageEntry], list[StoredModel]]:
    """The entries and the stored models of a cascade.

    Raises:
        CheckpointError: cascade.json is torn or foreign, or a stage has no checkpoint.
    """
    entries = _entries(folder)
    runs = [stage_folder(folder, k, entry["size"]) for k, entry in enumerate(entries, 1)]
    for run in runs:
        if not checkpoints(run):
            raise CheckpointError(f"the stage {run} is not trained yet; sdediff train --cascade FILE --resume")

    return entries, [find_model(run) for run in runs]


def load_cascade(
    folder: Path,
    *,
    nfe: int | None = None,
    noise: float | None = None,
    solver: str | None = None,
    device: str = "auto",
) -> list[StageModel]:
    """The stages of a cascade, ready to draw.

    Args:
        folder: that of the cascade.
        nfe: evaluations of a sample over all stages; those of cascade.json by default. The split is that which
            ``tune`` has found, or else in proportion to cascade.json.
        noise: level to which the image before is noised, in every stage; those of cascade.json by default.
        solver: a name in ``SOLVERS``.
        device: a name in ``DEVICES``.

    Raises:
        CheckpointError: as ``read_stages``.
        ValueError: fewer evaluations than stages, more noise than in training, or stages that do not fit.
    """
    entries, stored = read_stages(folder)
    given: Sequence[int] = [entry["nfe"] for entry in entries]
    levels = [entry["noise"] if noise is None or k == 0 else noise for k, entry in enumerate(entries)]
    if nfe is not None:
        tuned = None if solver is not None else find_split(folder, nfe, [one.sha256 for one in stored], levels)
        given = tuned or split_nfe(nfe, given)
    for one, level in zip(stored, levels, strict=True):
        _check_noise(level, trained_noise(one.path) or 0.0, f"{one.path}: --condition-noise")
    where = str(device_for(device))
    found = [
        StageModel(load(one, device=where), evaluations, level, solver)
        for one, evaluations, level in zip(stored, given, levels, strict=True)
    ]
    check_chain([stage.model for stage in found])
    return found
