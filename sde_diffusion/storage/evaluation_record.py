"""The figures of an evaluation on disk: `evaluation.json`, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.storage.atomic_folder import CheckpointError, read_json, to_json
from sde_diffusion.storage.record_types import EvaluationRecord
from sde_diffusion.storage.typed_json import checked
from solvers.errors import NotFoundError

EVALUATION_KIND = "sdediff evaluation"
EVALUATION = "evaluation.json"
CURVE = "curve.png"


def write_evaluation(folder: Path, record: EvaluationRecord, draw: Callable[[Path], object] | None = None) -> Path:
    """Write the record into a new folder, all or nothing, and return the file.

    Args:
        folder: its name, or the next free one if another process takes it meanwhile.
        record: the record.
        draw: writes a plot to the path ``curve.png`` in the folder.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it could not be written; nothing is left behind.
    """
    with new_folder(folder, taken="next") as new:
        write_file(new.temporary / EVALUATION, to_json(record))
        if draw is not None:
            draw(new.temporary / CURVE)
    return new.path / EVALUATION


def read_evaluation(path: str | os.PathLike[str]) -> EvaluationRecord:
    """The record in a file, or in a folder that has one.

    Raises:
        FileNotFoundError: no such file or folder exists.
        CheckpointError: it is torn, foreign, or of another version.
    """
    path = Path(path)
    path = path / EVALUATION if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"no evaluation at {path}: expected the {EVALUATION} that sdediff evaluate writes")
    content = read_json(path)
    if content.get("kind") != EVALUATION_KIND:
        raise CheckpointError(f"{path} is no evaluation: expected the {EVALUATION} that sdediff evaluate writes")
    return checked(content, EvaluationRecord, str(path))
