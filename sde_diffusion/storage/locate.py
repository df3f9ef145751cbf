"""Default locations: the latest run, the bundled model, unused names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sde_diffusion.data import NAMES
from sde_diffusion.files.writing import unused as unused
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.checkpoint import BUNDLED as BUNDLED
from sde_diffusion.storage.checkpoint import BUNDLED_NAME as BUNDLED_NAME
from sde_diffusion.storage.checkpoint import LABELLED as LABELLED
from sde_diffusion.storage.checkpoint import LABELLED_NAME as LABELLED_NAME
from sde_diffusion.storage.checkpoint import StoredModel, check_described, checkpoint_at
from sde_diffusion.storage.record_types import DataEntry, RunConfig
from sde_diffusion.storage.run_folder import latest_run, newest_checkpoint, run_config
from solvers.errors import InputError, NotFoundError

RUNS = Path("runs")


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
        FileNotFoundError: no such file or folder exists.
        CheckpointError: its config.json is torn, foreign, or of another version.
    """
    run = latest_run(RUNS) if path is None else Path(path)
    if run is None:
        raise NotFoundError(f"nothing to resume: no run in {RUNS}/; start one: sdediff train")
    if not (run / "config.json").is_file():
        raise NotFoundError(f"nothing to resume at {run}: there is no config.json")
    config = run_config(run)
    if config["model"]["network"]["name"] is not None:
        # A network is built next: of a size that the weights confirm.
        check_described(config["model"], newest_checkpoint(run) / "model.safetensors")
    return run, config


def recorded_model(path: str, record: Path) -> str:
    """The model of a record, if allowed: a file does not choose other files.

    Args:
        path: path in the record.
        record: the file.

    Raises:
        ValueError: it is neither "bundled", nor in ``runs/``, nor in the run that the record lies in.

    >>> recorded_model("bundled", Path("samples.json"))
    'bundled'
    >>> recorded_model("/etc/passwd", Path("samples.json"))
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: the record names the model /etc/passwd, which is neither bundled, nor in runs/, nor ...
    """
    runs = [parent for parent in record.resolve().parents if (parent / "config.json").is_file()]
    found = Path(path).resolve()
    if path in (BUNDLED_NAME, LABELLED_NAME) or any(found.is_relative_to(root) for root in (RUNS.resolve(), *runs)):
        return path
    if path.startswith("diffusers:") or ".py:" in path:
        raise InputError(
            f"the samples of the record come from --model {path}, and a record runs nothing by itself; name it again: "
            f"sdediff sample --model {path} --record {record}"
        )
    raise InputError(
        f"the record names the model {path}, which is neither bundled, nor in {RUNS}/, nor in the run of the record; "
        "give the model yourself: sdediff sample MODEL --record FILE"
    )


def recorded_data(name: str, option: str) -> str:
    """The data that a run names, if it may choose it: a set by name, or a path below the current folder.

    Args:
        name: a data set or a path.
        option: command-line option by which the user names data.

    Raises:
        ValueError: a path elsewhere.

    >>> recorded_data("digits", "--data"), recorded_data("cats/train.npy", "--data")
    ('digits', 'cats/train.npy')
    >>> recorded_data("/home/you/private.npy", "--data")
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: the run names its data /home/you/private.npy, which is outside of the current folder; ...
    """
    if name in NAMES or (not name.startswith("~") and Path(name).resolve().is_relative_to(Path.cwd().resolve())):
        return name
    raise InputError(
        f"the run names its data {name}, which is outside of the current folder; a file does not choose what is read: "
        f"if this is the data you mean, name it as well: {option} {name}"
    )


def recorded_layout(data: DataEntry, name: str) -> str | None:
    """The layout that the data at this path had in training, if one was given.

    Args:
        data: the entry of the data in a run or checkpoint.
        name: the name or path from which data are to be read now.

    >>> entry = {"name": "maps.npy", "layout": "channels-last"}
    >>> recorded_layout(entry, "./maps.npy"), recorded_layout(entry, "others.npy")
    ('channels-last', None)
    """
    here, there = (os.path.abspath(os.path.expanduser(path)) for path in (name, data.get("name", "")))
    return data.get("layout") if here == there and name not in NAMES else None


def find_model(path: str | os.PathLike[str] | None = None, *, labelled: bool = False) -> StoredModel:
    """The model at a path or the one called "bundled"; without a path the latest run's, if any.

    Args:
        path: where it is.
        labelled: whether the bundled model is the one with labels.

    Raises:
        FileNotFoundError: nothing exists at the path; or no path, no run and no bundled model.
        CheckpointError: an incomplete or foreign file, or one of another version.
        ValueError: the run is that of a classifier or an autoencoder.
    """
    if path is not None and (str(path) != BUNDLED_NAME or Path(path).exists()):
        found = checkpoint_at(path)
        if found.model["predicts"] == "latent":
            raise InputError(
                f"{path} is an autoencoder, from which nothing is sampled; train a diffusion model on its latents: "
                f"sdediff train --latent {path}"
            )
        if found.model["predicts"] == "class":
            raise InputError(
                f"{path} is a classifier of noisy samples, from which nothing is sampled; it guides a score model: "
                f"sdediff sample MODEL --classifier {path} --label 3"
            )
        return found
    run = None if path is not None else latest_run(RUNS, classifiers=False)
    bundled = LABELLED if labelled else BUNDLED
    if run is None and not bundled.is_file():
        raise NotFoundError(
            f"no run in {RUNS}/ and no bundled model at {bundled}; train one first: sdediff train --sde vp"
        )
    return checkpoint_at(bundled if run is None else run)


def find_classifier(path: str | os.PathLike[str]) -> StoredModel:
    """The classifier of noisy samples at a path.

    Raises:
        FileNotFoundError: nothing exists at the path.
        CheckpointError: an incomplete or foreign file, or one of another version.
        ValueError: it is a score model.
    """
    found = checkpoint_at(path)
    if found.model["predicts"] != "class":
        raise InputError(
            f"{path} predicts {found.model['predicts']} and is no classifier; train one: sdediff train --classifier"
        )
    return found


def find_autoencoder(path: str | os.PathLike[str]) -> StoredModel:
    """The autoencoder at a path.

    Raises:
        FileNotFoundError: nothing exists at the path.
        CheckpointError: an incomplete or foreign file, or one of another version.
        ValueError: it is no autoencoder.
    """
    found = checkpoint_at(path)
    if found.model["predicts"] != "latent":
        raise InputError(
            f"{path} predicts {found.model['predicts']} and is no autoencoder; train one: sdediff train --autoencoder "
            "kl"
        )
    return found


def folder_of(stored: StoredModel, name: str) -> Path:
    """A folder for results on a model: in its run, or in the current folder without a run.

    Raises:
        CheckpointError: the run has a link there, so that its author would choose where the results are written.
    """
    if stored.path.parent.name != "checkpoints":
        return Path(name)
    folder = stored.path.parent.parent / name
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a link, and nothing is written through the links of a run; remove it")
    return folder


def samples_folder(stored: StoredModel) -> Path:
    """Default folder for samples of a model: in its run, or ./samples without a run."""
    return folder_of(stored, "samples")


def name_of(stored: StoredModel) -> str:
    """The name by which ``find_model`` finds this model; "bundled" for the bundled one."""
    return {BUNDLED: BUNDLED_NAME, LABELLED: LABELLED_NAME}.get(stored.path, str(stored.path))
