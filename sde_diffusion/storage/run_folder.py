"""The folder of a training run: what is in it, and what survives a crash.

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
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.storage.atomic_folder import (
    STATE,
    CheckpointError,
    discard,
    read_json,
    read_state,
    sweep,
    to_json,
    write_file,
    write_folder,
)
from sde_diffusion.storage.record_types import DataEntry, RunConfig
from sde_diffusion.storage.typed_json import checked
from solvers.errors import ExistsError, NotFoundError, StateError

try:
    import fcntl
except ImportError:  # not a POSIX system: no protection against two trainers in one run
    fcntl = None  # type: ignore[assignment]


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
        CheckpointError: there is none; the message says what is wrong with the newest.
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


def latest_run(root: str | os.PathLike[str] = "runs") -> Path | None:
    """The run below ``root`` that saved a checkpoint last, or None.

    >>> latest_run("no-such-folder") is None
    True
    """
    found = [
        ((newest[0] / STATE).stat().st_mtime_ns, run)
        for run in Path(root).glob("*")
        if (newest := [c for c in checkpoints(run) if (c / STATE).exists()])
    ]
    return max(found)[1] if found else None


def run_config(out: str | os.PathLike[str]) -> RunConfig:
    """The content of config.json of a run.

    Raises:
        FileNotFoundError: there is no run at ``out``.
        CheckpointError: its config.json is torn, foreign, or of another version.
    """
    path = Path(out)
    if not (path / "config.json").is_file():
        raise NotFoundError(
            f"nothing to resume at {path}: it has no config.json; leave resume (--resume) out to start a run there"
        )
    return checked(read_json(path / "config.json"), RunConfig, str(path / "config.json"))


class Run:
    """An open run: writes metrics and checkpoints. Use ``create`` or ``reopen``, and ``close``.

    Attributes:
        path: the folder.
        config: the content of config.json.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        self._metrics = (path / "metrics.jsonl").open("ab", buffering=0)
        if fcntl is not None:
            try:
                fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._metrics.close()
                raise StateError(
                    f"another process is training in {path}; wait for it, or choose another folder"
                ) from None

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
            FileExistsError: there is something at ``out`` already.
            OSError: it could not be written; nothing is left behind.
        """
        path = Path(out)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ExistsError(
                f"{path} exists already; continue it with resume=True (--resume), or choose "
                "another folder with out= (--out)"
            )
        partial = path.with_name(f".{path.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "samples").mkdir(parents=True)
            (partial / "metrics.jsonl").touch()
            write_file(partial / "config.json", to_json(config))
            for name, content in (files or {}).items():
                write_file(partial / name, content)
            write_folder(partial / "checkpoints" / "step-000000", groups, state)
            partial.rename(path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(error.errno, f"could not start a run in {path}: {error.strerror}") from error
        return cls(path, config)

    @classmethod
    def reopen(cls, out: str | os.PathLike[str]) -> Run:
        """Open an existing run.

        Raises:
            FileNotFoundError: there is no run at ``out``.
            CheckpointError: its config.json is torn, foreign, or of another version.
            RuntimeError: another process is training in it.
        """
        path, config = Path(out), run_config(out)
        run = cls(path, config)
        for folder in (path, path / "checkpoints", path / "snapshots"):
            if folder.is_dir():
                sweep(folder)
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
            OSError: it could not be written (disk full); what was there is untouched.
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
