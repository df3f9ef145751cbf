"""A tuned solver on disk: `RUN/tuned/nfe-8.json`, with the model it belongs to.

The file has the table, the errors that tuning measured, and the SHA-256 of the model's weights. It is written to a
temporary name and renamed, and has no date in it: tuning twice with one seed writes the same bytes.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, read_json, to_json, write_file
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.locate import folder_of
from sde_diffusion.storage.record_types import ExtractorEntry, LossEntry
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from sde_diffusion.storage.tuned_record import NoiseEntry, TunedRecord
from sde_diffusion.storage.typed_json import checked
from solvers import Solver
from solvers.errors import ExistsError, InputError, NotFoundError

TUNED_KIND = "sdediff tuned solver"
NAME = "tuned"


def tuned_folder(stored: StoredModel) -> Path:
    """Folder of a model's tuned solvers: in its run, or ./tuned without a run.

    Raises:
        CheckpointError: the run has a link there.
    """
    return folder_of(stored, NAME)


def file_name(nfe: int, condition: str = "") -> str:
    """The name of the file for an NFE, and for a condition such as labels with a guidance scale.

    >>> file_name(8), file_name(8, "label-w2")
    ('nfe-8.json', 'nfe-8-label-w2.json')
    """
    return f"nfe-{nfe}-{condition}.json" if condition else f"nfe-{nfe}.json"


def save_tuned(
    path: str | os.PathLike[str], found: Tuned, stored: StoredModel, condition: str = "", **settings: Any
) -> None:
    """Write a tuned solver, whole or not at all.

    Args:
        path: the file; its folder is made. A tuned solver there is replaced.
        found: result of ``tuned``.
        stored: the model.
        condition: the guidance that it was tuned for, a tag of ``sampling.guidance_settings.GuidanceSettings``.
        settings: settings of the tuning, such as seed=0.

    Raises:
        FileExistsError: another file is there.
    """
    path = Path(path)
    require_tuned(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: TunedRecord = {
        "format": FORMAT,
        "kind": TUNED_KIND,
        "model": {"sha256": stored.sha256, "step": stored.step},
        "nfe": found.nfe,
        "settings": settings,
        "error": found.error,
        "default_error": found.default_error,
        "stages": found.stages,
        "teacher_error": found.teacher_error,
        "loss": found.loss,
        "solver": describe_solver(found.table),
    }
    if found.loss["name"] != "rmse" and math.isfinite(found.rmse) and math.isfinite(found.default_rmse):
        content |= {"rmse": found.rmse, "default_rmse": found.default_rmse}
    if condition:
        content["condition"] = condition
    if found.noise is not None:
        content["noise"] = found.noise
    write_file(path, to_json(content))


def require_tuned(path: Path) -> None:
    """Refuse to replace a file that is no tuned solver.

    Raises:
        FileExistsError: something else is at the path; a link, too.
    """
    if not os.path.lexists(path):
        return
    try:
        if not path.is_symlink() and read_json(path).get("kind") == TUNED_KIND:
            return
    except (CheckpointError, OSError):
        pass
    raise ExistsError(f"{path} is no tuned solver, and is kept; choose another folder with --out, or move the file")


def load_tuned(path: str | os.PathLike[str], stored: StoredModel, nfe: int, condition: str = "") -> Solver:
    """Read a tuned solver and check that it is for this model, NFE and condition.

    Raises:
        FileNotFoundError: no such file or folder exists.
        CheckpointError: the file is torn, foreign or of another version.
        ValueError: it was made for another model or NFE; the message names both.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(
            f"no tuned solver at {path}; make one: sdediff tune {stored.argument} --nfe {nfe}{_same(condition)}"
        )
    plain = read_json(path)
    if plain.get("kind") != TUNED_KIND:
        raise CheckpointError(f"{path} is no tuned solver: expected a file that sdediff tune wrote")
    try:
        content = checked(plain, TunedRecord, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; tune again: sdediff tune {stored.argument} --nfe {nfe}") from None
    if content["nfe"] != nfe:
        raise InputError(f"{path} is made for {content['nfe']} evaluations, and {nfe} are asked for; tune for {nfe}")
    if content["model"]["sha256"] != stored.sha256:
        raise InputError(
            f"{path} is made for the weights {content['model']['sha256'][:12]} (step {content['model']['step']}), and "
            f"{stored.path} has {stored.sha256[:12]} (step {stored.step}); tune again: sdediff tune {stored.argument} "
            f"--nfe {nfe}"
        )
    if content.get("condition", "") != condition:
        raise InputError(
            f"{path} is made for {_words(content.get('condition', ''))}, and {_words(condition)} is asked for; tune "
            f"again: sdediff tune {stored.argument} --nfe {nfe}{_same(condition)}"
        )
    try:
        return restore_solver(content["solver"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _same(condition: str) -> str:
    """The end of a command line that tunes for a condition."""
    return " with the same --label and --guidance" if condition else ""


def find_tuned(stored: StoredModel, nfe: int | None, condition: str = "") -> Solver:
    """The tuned solver of a model and a condition for an NFE; without an NFE the only one.

    Raises:
        FileNotFoundError: no such file or folder exists for this model, or this NFE.
        ValueError: several tuned solvers and no given NFE.
    """
    nfe = _only(stored, condition) if nfe is None else nfe
    return load_tuned(tuned_folder(stored) / file_name(nfe, condition), stored, nfe, condition)


def _only(stored: StoredModel, condition: str) -> int:
    """The NFE of the only tuned solver of a condition."""
    names = sorted(path.name for path in tuned_folder(stored).glob("nfe-*.json"))
    own = re.compile(re.escape(file_name(0, condition)).replace("0", r"(\d+)", 1))
    budgets = sorted(int(found[1]) for n in names if (found := own.fullmatch(n)))
    if len(budgets) > 1:
        raise InputError(f"there are tuned solvers for {', '.join(map(str, budgets))} evaluations; say which: --nfe")
    return budgets[0] if budgets else 8


def tuned_loss(stored: StoredModel, nfe: int | None, condition: str = "") -> LossEntry:
    """What the tuned solver that ``find_tuned`` returns minimised."""
    nfe = _only(stored, condition) if nfe is None else nfe
    path = tuned_folder(stored) / file_name(nfe, condition)
    return checked(read_json(path), TunedRecord, str(path)).get("loss", LossEntry(name="rmse"))


def judged_by(stored: StoredModel, nfe: int | None, condition: str = "") -> list[ExtractorEntry]:
    """The features that the tuned solver of ``find_tuned`` was fitted to, or its noise was chosen by."""
    nfe = _only(stored, condition) if nfe is None else nfe
    path = tuned_folder(stored) / file_name(nfe, condition)
    content = checked(read_json(path), TunedRecord, str(path))
    loss = content.get("loss", LossEntry(name="rmse"))
    found = [loss["extractor"]] if "extractor" in loss else []
    return [*found, content["noise"]["extractor"]] if "noise" in content else found


def usable_tuned(stored: StoredModel, nfe: int, condition: str = "") -> Path | None:
    """The file of the tuned solver for these weights, this NFE and this condition; None where there is none."""
    try:
        path = tuned_folder(stored) / file_name(nfe, condition)
        load_tuned(path, stored, nfe, condition)
    except (InputError, NotFoundError, CheckpointError):
        return None
    return path


def why_not_tuned(stored: StoredModel, nfe: int, condition: str = "") -> str | None:
    """Why no tuned solver of the model is usable for an NFE and a condition; None where none was made for that NFE."""
    try:
        own = tuned_folder(stored) / file_name(nfe, condition)
        others = [path for path in sorted(own.parent.glob(f"nfe-{nfe}*.json")) if path.name != own.name]
    except CheckpointError:
        return None
    if own.is_file():
        try:
            load_tuned(own, stored, nfe, condition)
        except (InputError, CheckpointError) as error:
            return str(error)
        return None
    made = []
    for path in others:
        tag = path.stem.removeprefix(f"nfe-{nfe}").removeprefix("-")
        if path.name == file_name(nfe, tag) and usable_tuned(stored, nfe, tag) is not None:
            made.append(_words(tag))
    if not made:
        return None
    return (
        f"the solver tuned for {nfe} evaluations is for {' or '.join(made)}, and {_words(condition)} is asked for; "
        f"tune for it: sdediff tune {stored.argument} --nfe {nfe}{_same(condition)}"
    )


def _words(condition: str) -> str:
    """A condition in a message.

    >>> _words(""), _words("label-w2")
    ('no label and no guidance', 'label-w2')
    """
    return condition or "no label and no guidance"


@dataclass(frozen=True)
class Tuned:
    """The result of tuning: a solver for one model and NFE, and its errors.

    Attributes:
        table: the solver; where the default was the best, the default itself or its mixture of tables.
        nfe: network evaluations it is made for, guided pairs counted as two.
        error: its mean error on the held-out noise samples: RMS of each sample's distance to the reference solution,
            in features where the loss is theirs.
        default_error: the same of the default solver.
        stages: the same of the best of each stage, by name.
        teacher_error: error of the converged endpoints themselves.
        noise_samples: initial noise samples that it was fitted on.
        held_out: others, which chose it, so that its error on them is a little too small.
        loss: what was minimised, "rmse" or "features" with the extractor.
        rmse: mean RMS distance of its held-out samples to the reference solution, also where the loss is of features.
        default_rmse: the same of the default solver.
        noise: strengths of noise and distances with and without them, where strengths were looked for; the errors are
            those of the solver without noise.
    """

    table: Solver
    nfe: int
    error: float
    default_error: float
    stages: dict[str, float]
    teacher_error: float
    noise_samples: int = 0
    held_out: int = 0
    loss: LossEntry = field(default_factory=lambda: LossEntry(name="rmse"))
    rmse: float = math.nan
    default_rmse: float = math.nan
    noise: NoiseEntry | None = None

    @property
    def gain(self) -> float:
        """Its error over that of the default."""
        return gain(self.error, self.default_error)


def gain(error: float, default_error: float) -> float:
    """One error over another; 1 where both are 0.

    >>> gain(0.5, 1.0), gain(0.0, 0.0)
    (0.5, 1.0)
    """
    return 1.0 if default_error == 0 else error / default_error
