"""Students of the diffusion network, trained on its data and kept in a folder.

Consistency distillation is one training for every number of evaluations; progressive distillation has a student for
each halving.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion import ScoreModel, distill, load
from sde_diffusion.data import Data

BUDGETS = (1, 2, 4)
START = 32
UPDATES = {"consistency": 700, "progressive": 150}  # of progressive, for each halving
OPTIONS: dict[str, Any] = {"batch_size": 64, "learning_rate": 5e-4, "warmup": 20, "ema": 0.99, "progress": False}
CHOICES: dict[str, dict[str, Any]] = {
    "consistency": {"settings": {"first": 10, "last": 20}, "time_sampling": "log-normal-wide"},
    "progressive": {},
}


@dataclass(frozen=True)
class Student:
    """A student and what its training took.

    Attributes:
        model: with its sampler.
        seconds: of processor time, those of the students before it included.
    """

    model: ScoreModel
    seconds: float


def trained(method: str, nfe: int, teacher: ScoreModel, data: Data | Tensor, folder: Path) -> Student:
    """The student of a method for a number of evaluations: from the folder if it is there, else trained and stored."""
    run, clock = folder / method, folder / f"{method}.seconds"
    last = run / f"steps-{min(BUDGETS)}" if method == "progressive" else run
    if not clock.is_file():
        begin = time.process_time()
        distill(
            teacher, data, method, nfe=min(BUDGETS), start=START, out=run, resume=last.is_dir(),
            steps=UPDATES[method], **OPTIONS, **CHOICES[method],
        )  # fmt: skip
        clock.write_text(f"{time.process_time() - begin}\n")
    seconds = float(clock.read_text())
    if method != "progressive":
        return Student(load(run).eval(), seconds)
    halvings = (START // min(BUDGETS)).bit_length() - 1
    share = ((START // nfe).bit_length() - 1) / halvings
    return Student(load(run / f"steps-{nfe}").eval(), seconds * share)
