"""``distill``: from a trained model to a student of few evaluations.

>>> import torch
>>> from sde_diffusion.networks import build
>>> from sde_diffusion.sde import VPSDE
>>> teacher = ScoreModel(build("mlp", shape=(2,), width=16), VPSDE(), "velocity", shape=(2,))
>>> options = {"steps": 2, "batch_size": 16, "progress": False}
>>> student = distill(teacher, torch.randn(64, 2), "progressive", nfe=2, start=4, **options)
>>> type(student.sampler).__name__, len(student.sampler.rows)
('Table', 2)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor, nn

from sde_diffusion.data import Data
from sde_diffusion.distillation.consistency import ConsistencyLoss
from sde_diffusion.distillation.denoising_gan import DenoisingGANLoss, generator_for
from sde_diffusion.distillation.progressive import ProgressiveLoss, ddim_table
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.record_types import CheckpointEntry, ObjectiveEntry
from sde_diffusion.training.defaults import UNCLIPPED
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.training_run import train
from solvers.diffusion.renoising import Renoising
from solvers.errors import InputError, choose, require_whole
from solvers.grids import make_grid

METHODS = {
    "progressive": "each student takes one step of DDIM for two of its teacher",
    "consistency": "the student maps each point of the teacher's flow to its end",
    "consistency-training": "the same without a teacher: neighbouring points share their data and their noise",
    "denoising-gan": "a generator with a latent draws x_0 from p(x_0 | x_t), against a discriminator; from data alone",
}
SETTINGS = {
    "progressive": (),
    "consistency": ("first", "last", "teacher_steps", "huber"),
    "consistency-training": ("first", "last", "huber"),
    "denoising-gan": ("gamma",),
}
START = 64  # steps of the first teacher of progressive distillation
GRID = "angle"


def distill(
    teacher: ScoreModel,
    data: Data | Tensor | ArrayLike,
    method: str = "consistency",
    *,
    nfe: int = 4,
    start: int = START,
    student: ScoreModel | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    source: CheckpointEntry | None = None,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> ScoreModel:
    """Train a student that samples with few evaluations, and return it.

    Args:
        teacher: a trained model; the student begins with its weights. For "consistency-training" and "denoising-gan" it
            may be untrained; the generator of the latter begins anew if the teacher predicts the noise.
        data: the training data of the teacher.
        method: a name in ``METHODS``.
        nfe: evaluations of the student of "progressive" and "denoising-gan"; a consistency model takes 1 to 4 or more.
        start: steps of the first teacher of progressive distillation, ``nfe`` times a power of two. Each halving is a
            training of its own.
        student: the model to train, on the process and in the units of the teacher; a copy of the teacher by default.
            That of "denoising-gan" is made by ``denoising_gan.generator_for``.
        out: folder of a new run; of progressive distillation the folder of one run for each halving, steps-32, ...
        resume: continue in ``out``; finished halvings are kept.
        source: the weights of the teacher, for the record.
        progress: show bars.
        settings: of the objective, by name: those of ``ConsistencyLoss`` or ``DenoisingGANLoss``.
        options: options of training, as ``train`` takes them.

    Returns:
        The student, in evaluation mode, with its ``sampler``.

    Raises:
        ValueError: an unknown method or setting, numbers of steps that do not fit, or a parametrization that the method
            excludes.

    >>> import torch
    >>> from sde_diffusion import VPSDE, sample
    >>> from sde_diffusion.networks import build
    >>> teacher = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), predicts="velocity")
    >>> student = distill(teacher, torch.randn(64, 2), steps=2, batch_size=8, progress=False)
    >>> sample(student, 3, nfe=2).shape
    torch.Size([3, 2])
    """
    choose(method, METHODS, "method of distillation")
    require_whole("nfe", nfe, 1, 1024)
    if method in ("progressive", "consistency"):
        refuse_distilled(teacher, "distill")
    chosen = dict(settings or {})
    for setting in chosen:
        choose(setting, dict.fromkeys(SETTINGS[method]), f"setting of {method}")
    options = {"time_sampling": "stratified", **options}
    place = None if out is None else Path(out)
    if method == "denoising-gan" and student is None:
        student = generator_for(teacher, nfe, seed=int(options.get("seed", 0)))
    student = copy.deepcopy(teacher if student is None else student).requires_grad_(True)
    if student.normalization is None:  # those of the teacher, which training would otherwise measure anew
        student.normalization = teacher.units
    if method == "progressive":
        return _halved(teacher, student, data, nfe, start, place, resume, source, progress, options)
    if method == "denoising-gan":
        entry: ObjectiveEntry = {"method": method, "settings": chosen, "teacher": None}
        # Each network's gradient has a size of its own, so a common limit would tie one to the other.
        options = {"clip": UNCLIPPED, **options}
        make = partial(DenoisingGANLoss, **chosen)
        return train(student, data, out=place, resume=resume, progress=progress, objective=(entry, make), **options)
    student.sampler = Renoising()
    guide = None if method == "consistency-training" else frozen(teacher)
    entry = {"method": method, "settings": chosen, "teacher": source if guide is not None else None}
    steps = int(options.get("steps", 3000))

    def objective(model: ScoreModel, network: nn.Module) -> Objective:
        return ConsistencyLoss(model, network, guide, steps, **chosen)

    return train(student, data, out=place, resume=resume, progress=progress, objective=(entry, objective), **options)


def frozen(model: ScoreModel) -> ScoreModel:
    """A copy in evaluation mode whose weights take no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def stages(nfe: int, start: int) -> list[int]:
    """The numbers of steps of the students of progressive distillation.

    Raises:
        ValueError: ``start`` is not ``nfe`` times a power of two.

    >>> stages(4, 32)
    [16, 8, 4]
    """
    out = []
    steps = start
    while steps > nfe and steps % 2 == 0:
        steps //= 2
        out.append(steps)
    if steps != nfe or not out:
        raise InputError(f"each student has half the steps of the one before: start = {start} does not lead to {nfe}")
    return out


def _halved(
    teacher: ScoreModel,
    student: ScoreModel,
    data: Data | Tensor | ArrayLike,
    nfe: int,
    start: int,
    out: Path | None,
    resume: bool,
    source: CheckpointEntry | None,
    progress: bool,
    options: dict[str, Any],
) -> ScoreModel:
    problem = teacher.sde.probability_flow(teacher)
    times = make_grid(GRID, problem, start).tolist()
    guide = frozen(teacher)
    for steps in stages(nfe, start):
        student.sampler = ddim_table(teacher.sde, times[::2])
        entry: ObjectiveEntry = {
            "method": "progressive",
            "settings": {"steps": steps, "start": start},
            "teacher": source,
        }
        folder = None if out is None else out / f"steps-{steps}"
        student = train(
            student,
            data,
            out=folder,
            resume=resume and folder is not None and folder.exists(),
            progress=progress,
            objective=(entry, _progressive(guide, times)),
            **options,
        )
        guide, times = frozen(student), times[::2]
        student.requires_grad_(True)
    return student


def _progressive(guide: ScoreModel, times: list[float]) -> Callable[[ScoreModel, nn.Module], Objective]:
    return lambda model, network: ProgressiveLoss(model, network, guide, times)
