"""The folder of a training run: its content, and its state after a crash.

    runs/<name>/
        config.json                training options, the model, name and fingerprint of the data
        metrics.jsonl              a line per `log_every` steps; only "time" differs between runs
        samples/                   pictures
        checkpoints/step-000240/   model, ema, optimizer .safetensors and state.json
        snapshots/step-000500/     power averages for ``posthoc``, where the run keeps some; none is removed

A run appears under its name only when it is complete with the checkpoint of step 0, so there is
always something to resume. Resuming cuts metrics.jsonl back to the checkpoint: the steps after it
are done again.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.files.writing import discard, new_folder, remove, sweep, write_file
from sde_diffusion.storage.atomic_folder import (
    STATE,
    CheckpointError,
    read_json,
    read_state,
    to_json,
    write_folder,
)
from sde_diffusion.storage.record_types import DataEntry, RunConfig
from sde_diffusion.storage.typed_json import checked
from solvers.errors import ExistsError, NotFoundError, StateError

try:
    import fcntl
except ImportError:  # not a POSIX system: no protection against two trainers in one run
    fcntl = None  # type: ignore[assignment]


CASCADE = "cascade.json"  # in the folder of a cascade, which has the run of each stage
_OTHERS = "continue it with resume=True (--resume), or choose another folder with out= (--out)"
_EARLIER = re.compile(r"\.(step-\d+|config\.json|config\.toml)\.(partial|rubbish)")  # left by version 0.1


def _open_metrics(run: Path) -> FileIO:
    """The log of a run, for appending, held against other processes.

    Raises:
        OSError: it is a link, or cannot be written.
        RuntimeError: another process is training in the run.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    # Unbuffered: what a full disk refused must not be tried again when the file is closed.
    metrics = FileIO(os.open(run / "metrics.jsonl", flags, 0o666), "ab")
    if fcntl is not None:
        try:
            fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            metrics.close()
            raise StateError(f"another process is training in {run}; wait for it, or choose another folder") from None
    return metrics


def _close(file: FileIO | None) -> None:
    if file is not None:
        file.close()


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; they may be torn."""
    return _steps(run / "checkpoints")[::-1]


def snapshots(run: Path) -> list[Path]:
    """The folders of saved power averages, oldest first."""
    return _steps(run / "snapshots")


def _steps(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]))


def newest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run; torn ones are passed over with a warning.

    Raises:
        CheckpointError: no checkpoint exists; the message says what is wrong with the newest.
    """
    reasons = []
    for folder in checkpoints(run):
        try:
            read_state(folder)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason}; using {folder.name} instead", stacklevel=2)
        return folder
    raise CheckpointError(f"no whole checkpoint in {run}: {reasons[0] if reasons else 'checkpoints/ is empty'}")


def latest_run(root: str | os.PathLike[str] = "runs", *, classifiers: bool = True) -> Path | None:
    """The run below ``root`` that saved a checkpoint last, or None.

    Args:
        root: folder of the runs.
        classifiers: whether runs of classifiers and autoencoders count, from which nothing can be sampled.

    >>> latest_run("no-such-folder") is None
    True
    """
    found = [
        ((newest[0] / STATE).stat().st_mtime_ns, run)
        for run in Path(root).glob("*")
        if (newest := [c for c in checkpoints(run) if (c / STATE).exists()])
    ]
    ordered = (run for _, run in sorted(found, reverse=True))
    return next((run for run in ordered if classifiers or not _has_no_samples(run)), None)


def _has_no_samples(run: Path) -> bool:
    try:
        return read_json(run / "config.json")["model"]["predicts"] in ("class", "latent")
    except (CheckpointError, OSError, KeyError, TypeError):
        return False  # said where the run is read


def run_config(out: str | os.PathLike[str]) -> RunConfig:
    """The content of config.json of a run.

    Raises:
        FileNotFoundError: no run exists at ``out``.
        CheckpointError: its config.json is torn, foreign, or of another version.
    """
    path = Path(out)
    if not (path / "config.json").is_file():
        raise NotFoundError(
            f"nothing to resume at {path}: it has no config.json; leave resume (--resume) out to start a run there"
        )
    return checked(read_json(path / "config.json"), RunConfig, str(path / "config.json"))


def trained_noise(checkpoint: Path) -> float | None:
    """The level up to which a run has noised its condition images; None for a model outside of a run.

    Args:
        checkpoint: a checkpoint of the run.

    Raises:
        CheckpointError: the config.json of the run is torn, foreign, or of another version.
    """
    run = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (run / "config.json").is_file():
        return None
    return float(run_config(run)["train"].get("condition_noise", 0.0))


class Run:
    """An open run: writes metrics and checkpoints. Use ``create`` or ``reopen``, and ``close``.

    Attributes:
        path: the folder.
        config: the content of config.json.
    """

    def __init__(self, path: Path, config: RunConfig, metrics: FileIO | None = None) -> None:
        self.path = path
        self.config = config
        self._metrics = _open_metrics(path) if metrics is None else metrics

    @classmethod
    def create(
        cls,
        out: str | os.PathLike[str],
        config: RunConfig,
        groups: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> Run:
        """Make a new run with its checkpoint of step 0, and with other files by name.

        Raises:
            FileExistsError: ``out`` exists already.
            OSError: it could not be written; nothing is left behind.
        """
        path = Path(out)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ExistsError(f"{path} exists already; {_OTHERS}")
        metrics = None
        try:
            with new_folder(path) as new:
                (new.temporary / "samples").mkdir()
                # Open and locked before the run has its name, so that no process can resume it in between.
                metrics = _open_metrics(new.temporary)
                write_file(new.temporary / "config.json", to_json(config))
                for name, content in (files or {}).items():
                    write_file(new.temporary / name, content)
                write_folder(new.temporary / "checkpoints" / "step-000000", groups, state)
        except FileExistsError:
            _close(metrics)
            raise ExistsError(f"{path} was made by another process meanwhile; {_OTHERS}") from None
        except OSError as error:
            _close(metrics)
            reason = (error.strerror or str(error)).removeprefix(f"could not write {path}: ")
            raise OSError(error.errno, f"could not start a run in {path}: {reason}") from error
        except BaseException:
            _close(metrics)
            raise
        return cls(path, config, metrics)

    @classmethod
    def reopen(cls, out: str | os.PathLike[str]) -> Run:
        """Open an existing run.

        Raises:
            FileNotFoundError: no run exists at ``out``.
            CheckpointError: its config.json is torn, foreign, or of another version.
            RuntimeError: another process is training in it.
        """
        path, config = Path(out), run_config(out)
        for name in ("checkpoints", "snapshots", "samples", "tuned", "metrics.jsonl", "config.json"):
            if (path / name).is_symlink():
                raise CheckpointError(
                    f"{path / name} is a link: going on with the run would write and delete where it points. A run can "
                    "be resumed when its files are in its own folder, which may be reached by a link itself"
                )
        run = cls(path, config)
        for folder in (path, path / "checkpoints", path / "snapshots"):
            if folder.is_dir():
                sweep(folder, everything=True)
                for old in folder.iterdir():
                    if _EARLIER.fullmatch(old.name):
                        remove(old)
        return run

    def update_config(self, train: Mapping[str, Any], data: DataEntry) -> None:
        """Change options and data in config.json."""
        self.config = {**self.config, "train": dict(train), "data": data}
        write_file(self.path / "config.json", to_json(self.config))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file of the run."""
        write_file(self.path / name, content)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; it has a "step".

        Raises:
            OSError: it could not be written (disk full); the checkpoints are untouched.
        """
        line = (json.dumps(record) + "\n").encode()
        try:
            while line:
                line = line[self._metrics.write(line) :]
        except OSError as error:
            raise self._failed("metrics.jsonl", error) from error

    def cut_metrics(self, step: int) -> None:
        """Drop every line of metrics.jsonl after ``step``, and a torn last line."""
        content = (self.path / "metrics.jsonl").read_bytes()
        end = 0
        for line in content.splitlines(keepends=True):
            try:
                keep = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                keep = False
            if not keep:
                break
            end += len(line)
        self._metrics.truncate(end)

    def save(
        self,
        step: int,
        groups: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: int,
    ) -> Path:
        """Write the checkpoint of a step, then remove all but the newest ``keep``.

        Raises:
            OSError: it could not be written (disk full); the earlier checkpoints are untouched.
        """
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        # The lines up to this step must not be younger than the checkpoint after a power cut.
        os.fsync(self._metrics.fileno())
        try:
            write_folder(folder, groups, state)
        except OSError as error:
            raise self._failed(folder.name, error) from error
        for old in checkpoints(self.path)[keep:]:
            discard(old)
        return folder

    def snapshot(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Write the power averages of a step.

        Raises:
            OSError: it could not be written (disk full); existing files are unchanged.
        """
        folder = self.path / "snapshots" / f"step-{step:06d}"
        try:
            write_folder(folder, groups, state)
        except OSError as error:
            raise self._failed(f"the snapshot {folder.name}", error) from error

    def _failed(self, what: str, error: OSError) -> OSError:
        before = next((c.name for c in checkpoints(self.path)), "none")
        return OSError(
            error.errno,
            f"could not save {what} in {self.path}: {error.strerror}; the last whole checkpoint is {before}. "
            "Make room and go on with resume=True (--resume)",
        )

    def cut_snapshots(self, step: int) -> None:
        """Drop the snapshots after ``step``: their steps are done again."""
        for folder in snapshots(self.path):
            if int(folder.name[5:]) > step:
                discard(folder)

    def close(self) -> None:
        """Let another process resume the run."""
        self._metrics.close()
