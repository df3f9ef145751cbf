"""The figures of an evaluation on disk: `evaluation.json`, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from sde_diffusion.storage.atomic_folder import CheckpointError, read_json, to_json, write_file
from sde_diffusion.storage.record_types import EvaluationRecord
from sde_diffusion.storage.typed_json import checked
from solvers.errors import NotFoundError

KIND = "sdediff evaluation"
EVALUATION = "evaluation.json"


def write_evaluation(folder: Path, record: EvaluationRecord) -> Path:
    """Write the record into a folder, which is made, and return the file.

    Raises:
        OSError: it could not be written; an earlier file is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / EVALUATION, to_json(record))
    return folder / EVALUATION


def read_evaluation(path: str | os.PathLike[str]) -> EvaluationRecord:
    """The record in a file, or in a folder that has one.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is torn, foreign, or of another version.
    """
    path = Path(path)
    path = path / EVALUATION if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"no evaluation at {path}: expected the {EVALUATION} that sdediff evaluate writes")
    content = read_json(path)
    if content.get("kind") != KIND:
        raise CheckpointError(f"{path} is no evaluation: expected the {EVALUATION} that sdediff evaluate writes")
    return checked(content, EvaluationRecord, str(path))
