"""``train``: trains a model on data and returns the model to sample from.

>>> import torch
>>> from sde_diffusion.networks import build
>>> from sde_diffusion.sde import VPSDE
>>> points = 0.1 * torch.randn(256, 2) + torch.tensor([2.0, 0.0])
>>> model = ScoreModel(build("mlp", shape=(2,), width=32), VPSDE())
>>> trained = train(model, points, steps=10, batch_size=32, progress=False)
>>> trained.shape, trained.training
((2,), False)
"""

from __future__ import annotations

import copy
import os
import platform
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sde_diffusion.data import Data
from sde_diffusion.data.normalization import Normalization
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.progress import Meter
from sde_diffusion.storage.atomic_folder import FORMAT, STATE, read_state, to_json, unpack
from sde_diffusion.storage.checkpoint import describe_model, exported
from sde_diffusion.storage.latent_file import AUTOENCODER, hash_of
from sde_diffusion.storage.record_types import DataEntry, ObjectiveEntry, RunConfig, TrainingState
from sde_diffusion.storage.run_folder import Run, newest_checkpoint, run_config
from sde_diffusion.storage.typed_json import checked
from sde_diffusion.training import interrupts as signals
from sde_diffusion.training.autoencoding.readers import FEATURES
from sde_diffusion.training.checks import TrainingDivergedError, check_finite, checked_data
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import options_of, write_options
from sde_diffusion.training.distributed import Distributed
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.watching.watcher import Watcher
from solvers.errors import InputError

# Options that may change when a run is resumed, since they do not affect earlier steps.
_FREE = frozenset({"steps", "log_every", "checkpoint_every", "keep", "device", "tracker", "sample_every"})


def train(
    model: ScoreModel,
    data: Data | Tensor | ArrayLike,
    config: TrainConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    objective: tuple[ObjectiveEntry, Callable[[ScoreModel, nn.Module], Objective]] | None = None,
    held_out: Data | Tensor | ArrayLike | None = None,
    **options: Any,
) -> ScoreModel:
    """Train a model by weighted denoising score matching, and return it with averaged weights.

    Under ``accelerate launch`` or ``torchrun``, all processes call ``train`` with the same arguments and share the
    work.

    Args:
        model: the model to train; its network ends with the last weights, in place.
        data: a data set, or an array (N, ...) that ``as_data`` understands.
        config: the options; by default those of ``TrainConfig``, or of the resumed run.
        out: folder of a new run, for metrics and checkpoints. By default nothing is
            written.
        resume: continue the run in ``out`` from its newest complete checkpoint. On the CPU, with the
            same number of threads, the result is bit-equal to that of an uninterrupted run.
        force: resume although options or data differ from those of the run, with a warning.
        progress: show a bar in a terminal, otherwise a line every 15 s.
        objective: another objective, as ``Trainer`` takes it, and its description in the run; denoising score
            matching by default.
        held_out: data that training does not see: their loss stands beside that of training data in the run's page.
            By default the part that ``hold_out`` leaves out, if any.
        options: single options by name, such as ``steps=2000``.

    Returns:
        A copy of the model with the averaged weights, in evaluation mode.

    Raises:
        FileExistsError: ``out`` exists and ``resume`` is False.
        FileNotFoundError: no run to resume exists.
        ValueError: options, model and data do not fit each other or the resumed run.
        FloatingPointError: the loss stopped being finite; the last checkpoint is intact, and step, times and
            samples are in non-finite.json of the run.
        OSError: a checkpoint could not be written; the one before is intact.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; a checkpoint of the last step was
            saved.

    >>> import torch
    >>> from sde_diffusion import VPSDE, sample
    >>> from sde_diffusion.networks import build
    >>> model = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), predicts="velocity")
    >>> trained = train(model, torch.randn(64, 2), steps=2, batch_size=8, progress=False)
    >>> sample(trained, 3, nfe=4).shape
    torch.Size([3, 2])
    """
    data = checked_data(model, data)
    if resume and out is None:
        raise InputError("resume=True needs the folder of the run: out=...")

    with ExitStack() as stack:
        stored = run_config(out) if resume and out is not None else None
        if stored:
            config = config or TrainConfig.from_dict(stored["train"])
            model.normalization = Normalization.from_entry(stored["model"].get("normalization"))
        config = (config or TrainConfig()).with_options(options)
        path = None if out is None else Path(out)
        if config.tracker != "none" and path is None:
            raise InputError(f"tracker='{config.tracker}' writes into the folder of the run: give it with out=...")
        engine = Distributed(config.device, config.precision, config.tracker, path)
        run = _Shared(engine, path, stack)
        if stored:
            run.reopen()
        trainer = Trainer(model, data, config, engine, None if objective is None else objective[1])
        about: RunConfig = {
            "format": FORMAT,
            "train": config.to_dict(),
            "model": describe_model(model),
            "data": _about(data, config),
            "versions": _versions(),
        }
        if objective is not None:
            about["objective"] = objective[0]
        reader = model.reader if isinstance(model, AutoencoderModel) else None
        if reader is not None:
            about["features"] = hash_of(reader)
        toml = write_options(options_of(about["train"], about["model"], about["data"]))
        if stored:
            _continue(trainer, run, stored, about, toml, force)
        else:
            state = {**trainer.state(), **_identity(about)}
            files = {"config.toml": toml}
            if isinstance(model.decoder, AutoencoderModel):
                files[AUTOENCODER] = exported(model.decoder)
            if reader is not None:
                files[FEATURES] = exported(reader)
            run.create(about, trainer.groups(), state, files)
        caught: list[int] = stack.enter_context(signals.deferred()) if path else []
        stack.enter_context(engine.tracking("tracker", about["train"]))
        try:
            watcher = _watcher(trainer, run, None if held_out is None else checked_data(model, held_out))
            sampled = objective is None and not isinstance(model, (NoisyClassifier, AutoencoderModel))
            if watcher is not None and not sampled:
                # A student samples with a solver of its own, and has another loss; the others have no samples.
                watcher.samples = False
            _loop(trainer, run, _identity(about), caught, progress, watcher)
        except TrainingDivergedError as error:
            details = to_json(error.details)
            run.once(lambda run: run.write("non-finite.json", details))
            raise
    signals.finish(caught)
    result = copy.deepcopy(model)
    result.network.load_state_dict(trainer.averages["ema"].state())
    return result.eval()


def _watcher(trainer: Trainer, run: _Shared, held_out: Data | None) -> Watcher | None:
    """Samples and page of the run, on the process that writes it."""
    path, engine = run.path, trainer.engine
    if path is None or not engine.main:
        return None
    given = None if held_out is None else (held_out, torch.arange(len(held_out), device="cpu"))
    if given is None and len(trainer.held):
        given = (trainer.data, trainer.held)

    def write(name: str, content: bytes) -> None:
        run.here(lambda run: run.write(name, content))

    return Watcher(trainer, path, write, given, lambda values, image, step: engine.track(values, step, image))


class _Shared:
    """The run folder for several processes: one process writes, and all raise its errors."""

    def __init__(self, engine: Distributed, path: Path | None, stack: ExitStack) -> None:
        self.engine, self.path, self._stack = engine, path, stack
        self._run: Run | None = None

    def create(self, config: RunConfig, groups: Any, state: Mapping[str, Any], files: Any) -> None:
        if (path := self.path) is not None:
            self.engine.once(lambda: self._hold(Run.create(path, config, groups, state, files)))

    def reopen(self) -> None:
        if (path := self.path) is not None:
            self.engine.once(lambda: self._hold(Run.reopen(path)))

    def _hold(self, run: Run) -> None:
        self._run = run
        self._stack.callback(run.close)

    def here(self, action: Callable[[Run], object]) -> None:
        """Call a function of the run on the process that writes it, without telling the others."""
        if self._run is not None:
            action(self._run)

    def once(self, action: Callable[[Run], object]) -> None:
        """Call a function of the run, if it exists."""
        if self.path is not None:
            self.engine.once(lambda: action(self._run) if self._run else None)


def _loop(
    trainer: Trainer,
    run: _Shared,
    identity: Mapping[str, Any],
    caught: list[int],
    progress: bool,
    watcher: Watcher | None,
) -> None:
    config, engine = trainer.config, trainer.engine
    saved = trainer.step
    start, waited, first = time.perf_counter(), trainer.waited, trainer.step
    stop = signals.StopVote(engine.agree if engine.world > 1 else None, caught)
    if trainer.step < config.steps and stop.reached(trainer.step):
        return
    with Meter(config.steps, trainer.step, progress and engine.main) as meter, closing(iter(trainer)) as steps:
        for step in steps:
            k, last = step.number, step.number == config.steps
            if k % config.log_every == 0 or last:
                seconds = time.perf_counter() - start
                rate = (k - first) * config.batch_size / seconds
                wait = (trainer.waited - waited) / seconds
                record = trainer.take_record()
                meter.measured(record["loss"], rate, wait)
                figures = {name: value for name, value in record.items() if isinstance(value, (int, float))}
                record["time"] = {"seconds": seconds, "images_per_second": rate, "data_wait": wait}
                run.once(lambda run, record=record: run.log(record))  # type: ignore[misc]
                engine.track({**figures, "images_per_second": rate}, k)
                start, waited, first = time.perf_counter(), trainer.waited, k
                if watcher is not None:
                    watcher.logged(record)
            meter.update(k)
            pause = time.perf_counter()
            if watcher is not None and watcher.due(k):
                watcher.preview(k)
                watcher.page("running")
            if trainer.powers and (k % config.snapshot_every == 0 or last):
                # Before the checkpoint, so that a run resumed from it has all earlier snapshots.
                powers, about = trainer.snapshot(), {"step": k, "widths": list(trainer.powers), **identity}
                check_finite(powers, k)
                run.once(lambda run, k=k, p=powers, a=about: run.snapshot(k, p, a))  # type: ignore[misc]
            if k % config.checkpoint_every == 0:
                _save(trainer, run, identity)
                saved = k
            start += time.perf_counter() - pause
            if not last and stop.reached(k):
                break
        if saved < trainer.step:
            _save(trainer, run, identity)
    if watcher is not None:
        if caught and caught[0] == signal.SIGINT:  # somebody waits for it; SIGTERM leaves little time
            watcher.preview(trainer.step)
        watcher.page("done" if trainer.step == config.steps else "stopped")


def _save(trainer: Trainer, run: _Shared, identity: Mapping[str, Any]) -> None:
    if run.path is None:
        return
    # Before anything is written, so that non-finite weights never replace good ones.
    trainer.read()
    groups = trainer.groups()
    check_finite(groups, trainer.step)
    state = {**trainer.state(), **identity}
    run.once(lambda run: run.save(trainer.step, groups, state, trainer.config.keep))


def _continue(trainer: Trainer, run: _Shared, stored: RunConfig, about: RunConfig, toml: bytes, force: bool) -> None:
    """Continue a run from its newest complete checkpoint."""
    path = run.path
    assert path is not None
    # Options added after the run was made have their defaults.
    parts: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "model": (stored["model"], about["model"]),
        "data": (stored["data"], about["data"]),
        "train": (TrainConfig.from_dict(stored["train"]).to_dict(), about["train"]),
        "objective": (_plain(stored.get("objective")), _plain(about.get("objective"))),
        "classifier of --features": ({"sha256": stored.get("features")}, {"sha256": about.get("features")}),
    }
    changed = []
    for part, (before, now) in parts.items():
        differ = [
            f"{name}: {before.get(name)!r} in the run, {now.get(name)!r} now"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name) and not (part == "train" and name in _FREE)
        ]
        if differ and (part == "model" or not force):
            insist = "" if part == "model" else ", or insist with force=True (--force)"
            raise InputError(
                f"{path} cannot be resumed with another {part} ({'; '.join(differ)}); resume "
                f"it with its original options, or start a new run{insist}"
            )
        if differ:
            changed.append(f"another {part} ({'; '.join(differ)})")
    folder = newest_checkpoint(path)
    state = read_state(folder)
    checked(state, TrainingState, str(folder / STATE))
    if state["step"] > trainer.config.steps:
        raise InputError(f"{path} is already at step {state['step']}, beyond steps={trainer.config.steps}")
    missing = [name for name in trainer.groups() if name != "optimizer" and f"{name}.safetensors" not in state["files"]]
    if missing:
        raise InputError(f"{folder} has no {', '.join(missing)}: a resumed run cannot add them")
    groups = {name: unpack(folder / f"{name}.safetensors") for name in trainer.groups()}
    trainer.restore(groups, state)

    def cut(run: Run) -> None:
        run.cut_metrics(trainer.step)
        run.cut_snapshots(trainer.step)
        if stored["train"] != about["train"] or stored["data"] != about["data"]:
            run.update_config(train=about["train"], data=about["data"])
            run.write("config.toml", toml)

    run.once(cut)
    if changed and trainer.engine.main:
        warnings.warn(f"{path} goes on with {' and '.join(changed)}", stacklevel=3)


def _plain(entry: ObjectiveEntry | None) -> Mapping[str, Any]:
    return {"method": "denoising score matching"} if entry is None else entry


def _identity(about: RunConfig) -> dict[str, Any]:
    return {"model": about["model"], "data": about["data"]}


def _about(data: Data, config: TrainConfig) -> DataEntry:
    about: DataEntry = {"name": data.name, "fingerprint": data.fingerprint, "samples": len(data)}
    if data.class_names is not None:
        about["class_names"] = list(data.class_names)
    if (given := data.condition) is not None:
        about["condition"] = {
            "name": given.name,
            "kind": given.kind,  # type: ignore[typeddict-item]
            "shape": list(given.shape),
            "count": len(given),
            "sha256": given.fingerprint,
            "dropped": config.drop_condition,
            "noise": config.condition_noise,
        }
    if data.layout is not None:
        about["layout"] = data.layout
    if data.source is not None:
        about["source"] = data.source
    return about


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}
