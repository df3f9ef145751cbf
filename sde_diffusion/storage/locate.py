"""Default locations: the latest run, the bundled model, unused names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sde_diffusion.storage.checkpoint import StoredModel, find
from sde_diffusion.storage.record_types import RunConfig
from sde_diffusion.storage.run_folder import latest_run, run_config
from solvers.errors import NotFoundError

RUNS = Path("runs")
BUNDLED = Path(__file__).parent.parent / "pretrained" / "digits.safetensors"
BUNDLED_NAME = "bundled"


def unused(path: Path) -> Path:
    """The path itself, or with -2, -3, ... the first that does not exist.

    >>> unused(Path("no-such-folder/digits-vp")).name
    'digits-vp'
    """
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def new_run(data: str | os.PathLike[str], sde: str) -> Path:
    """A folder in runs/ for a new run, named after the data and the process.

    >>> new_run("images/my cats.npz", "ve").name
    'my-cats-ve'
    """
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(data).stem).strip("-.") or "data"
    return unused(RUNS / f"{stem}-{sde}")


def run_to_resume(path: str | os.PathLike[str] | None = None) -> tuple[Path, RunConfig]:
    """A run and its config.json; the latest run when no path is given.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: its config.json is torn, foreign, or of another version.
    """
    run = latest_run(RUNS) if path is None else Path(path)
    if run is None:
        raise NotFoundError(f"nothing to resume: no run in {RUNS}/; start one: sdediff train")
    if not (run / "config.json").is_file():
        raise NotFoundError(f"nothing to resume at {run}: there is no config.json")
    return run, run_config(run)


def find_model(path: str | os.PathLike[str] | None = None) -> StoredModel:
    """The model at a path or the one called "bundled"; without a path the latest run's, if any.

    Raises:
        FileNotFoundError: there is nothing at the path, or no path, no run and no bundled model.
        CheckpointError: what is there is torn, foreign, or of another version.
    """
    if path is not None and (str(path) != BUNDLED_NAME or Path(path).exists()):
        return find(path)
    run = None if path is not None else latest_run(RUNS)
    if run is None and not BUNDLED.is_file():
        raise NotFoundError(
            f"no run in {RUNS}/ and no bundled model at {BUNDLED}; train one first: sdediff train --sde vp"
        )
    return find(BUNDLED if run is None else run)


def samples_folder(stored: StoredModel) -> Path:
    """Where samples of a model go: into its run, or ./samples where it belongs to none."""
    if stored.path.parent.name == "checkpoints":
        return stored.path.parent.parent / "samples"
    return Path("samples")


def name_of(stored: StoredModel) -> str:
    """What ``find_model`` finds this model by, on any machine where it is the bundled one."""
    return BUNDLED_NAME if stored.path == BUNDLED else str(stored.path)
