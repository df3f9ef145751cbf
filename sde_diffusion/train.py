"""Training, from a model and data to a model that can be sampled.

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
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sde_diffusion import signals
from sde_diffusion.checkpoint import describe
from sde_diffusion.config import TrainConfig
from sde_diffusion.data import Data, as_data
from sde_diffusion.progress import Meter
from sde_diffusion.runs import Run, newest_checkpoint
from sde_diffusion.score import ScoreModel
from sde_diffusion.storage import read_state, unpack
from sde_diffusion.trainer import Trainer

# Options that may change when a run is resumed: none of them alters a step that was already made.
_FREE = frozenset({"steps", "log_every", "checkpoint_every", "keep", "device"})


def train(
    model: ScoreModel,
    data: Data | Tensor | ArrayLike,
    config: TrainConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> ScoreModel:
    """Train a model by weighted denoising score matching.

    Args:
        model: what to train; its network ends with the last weights, in place.
        data: a data set, or an array (N, ...) that ``as_data`` understands.
        config: the options; the defaults of ``TrainConfig``, or those of the run when it is
            resumed.
        out: folder of a new run, for metrics and checkpoints. Without it everything stays in
            memory.
        resume: continue the run in ``out`` from its newest whole checkpoint. On the CPU, with the
            same number of threads, the result is bit-equal to that of an uninterrupted run.
        progress: show a bar in a terminal, a line now and then elsewhere.
        options: single options by name, such as ``steps=2000``.

    Returns:
        A copy of the model with the averaged weights, in evaluation mode.

    Raises:
        FileExistsError: ``out`` exists and ``resume`` was not asked for.
        FileNotFoundError: there is no run to resume.
        ValueError: options, model and data do not fit each other, or not the run that is resumed.
        FloatingPointError: the loss stopped being finite; the last checkpoint is intact.
        OSError: a checkpoint could not be written; the one before is intact.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; a checkpoint of the last step was
            saved.
    """
    _check_model(model)
    data = data if isinstance(data, Data) else as_data(data)
    if model.shape is None:
        model.shape = data.shape
    if model.shape != data.shape:
        raise ValueError(f"the model is for samples of shape {model.shape}; those of {data.name} are {data.shape}")
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run: out=...")

    with ExitStack() as stack:
        run: Run | None = None
        if resume and out is not None:
            run = Run.reopen(out)
            stack.callback(run.close)
            config = config or TrainConfig(**run.config["train"])
        config = (config or TrainConfig()).with_options(options)
        device = _device(config.device)
        trainer = Trainer(model, data, config, device)
        if out is not None:
            about = {"train": config.to_dict(), "model": describe(model), "data": _about(data)}
            if run is None:
                state = {**trainer.state(), **_identity(about)}
                run = Run.create(out, {**about, "versions": _versions()}, trainer.groups(), state)
                stack.callback(run.close)
            else:
                _continue(trainer, run, about)
        was_training = trainer.network.training
        stack.callback(trainer.network.train, was_training)
        trainer.network.train()
        caught: list[int] = stack.enter_context(signals.deferred()) if run else []
        # torch's own generator is seeded at every step: the caller's state is put back afterwards.
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        _loop(trainer, run, caught, progress)
    signals.finish(caught)
    result = copy.deepcopy(model)
    result.network.load_state_dict(trainer.ema.state())
    return result.eval()


def _loop(trainer: Trainer, run: Run | None, caught: list[int], progress: bool) -> None:
    config = trainer.config
    identity = {key: run.config[key] for key in ("model", "data")} if run else {}
    saved = trainer.step
    start, waited, first = time.perf_counter(), trainer.waited, trainer.step
    with Meter(config.steps, trainer.step, progress) as meter:
        while trainer.step < config.steps and not caught:
            trainer.advance()
            k = trainer.step
            if k % config.log_every == 0 or k == config.steps:
                trainer.read()
                seconds = time.perf_counter() - start
                rate = (k - first) * config.batch_size / seconds
                wait = (trainer.waited - waited) / seconds
                loss = sum(trainer.losses) / len(trainer.losses)
                record = {
                    "step": k,
                    "loss": loss,
                    "grad_norm": sum(trainer.norms) / len(trainer.norms),
                    "learning_rate": config.learning_rate_at(k),
                    "time": {"seconds": seconds, "images_per_second": rate, "data_wait": wait},
                }
                meter.measured(loss, rate, wait)
                trainer.losses.clear()
                trainer.norms.clear()
                start, waited, first = time.perf_counter(), trainer.waited, k
                if run:
                    run.log(record)
            meter.update(k)
            if run and k % config.checkpoint_every == 0:
                pause = time.perf_counter()
                _save(trainer, run, identity)
                saved = k
                start += time.perf_counter() - pause
        if run and saved < trainer.step:
            _save(trainer, run, identity)


def _save(trainer: Trainer, run: Run, identity: Mapping[str, Any]) -> None:
    # Before anything is written: weights that are not finite never replace good ones.
    trainer.read()
    run.save(trainer.step, trainer.groups(), {**trainer.state(), **identity}, trainer.config.keep)


def _continue(trainer: Trainer, run: Run, about: Mapping[str, Any]) -> None:
    """Take up a run where its newest whole checkpoint left it."""
    for part in ("model", "data", "train"):
        stored, now = run.config[part], about[part]
        differ = [
            f"{name}: {stored.get(name)!r} in the run, {now.get(name)!r} now"
            for name in sorted({*stored, *now})
            if stored.get(name) != now.get(name) and not (part == "train" and name in _FREE)
        ]
        if differ:
            raise ValueError(
                f"{run.path} cannot be resumed with another {part} ({'; '.join(differ)}); resume "
                "it with what it was started with, or start a new run"
            )
    folder = newest_checkpoint(run.path)
    state = read_state(folder)
    if state["step"] > trainer.config.steps:
        raise ValueError(f"{run.path} is at step {state['step']} already, beyond steps={trainer.config.steps}")
    groups = {name: unpack(folder / f"{name}.safetensors") for name in trainer.groups()}
    trainer.restore(groups, state)
    run.cut_metrics(trainer.step)
    if run.config["train"] != about["train"]:
        run.update_config(train=about["train"])


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("model", "data")}


def _about(data: Data) -> dict[str, Any]:
    return {"name": data.name, "fingerprint": data.fingerprint, "samples": len(data)}


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("device='cuda': torch sees no CUDA device here; use 'cpu' or 'auto'")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def _check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"expected a ScoreModel, got {type(model).__name__}; wrap a network: ScoreModel(network, VPSDE())"
        )
    if not isinstance(model.network, nn.Module):
        raise TypeError(f"a {type(model.network).__name__} cannot be trained; use an nn.Module")
    # Refuses what could be trained but never sampled: noise prediction where alpha(1) = 0.
    model.sde.reverse(model)
