"""The trainer: one training step, and the state that changes from step to step.

Step metrics stay on the device until ``read``, so that no step synchronises. ``read`` also checks that they are
finite. The draws of a step are a function of its number, so that an error can name the step, its samples and its times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sde_diffusion.data import Data
from sde_diffusion.data.augment import LABELS
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.checkpoint import check_weights
from sde_diffusion.training.checks import (
    TrainingDivergedError,
    adamw_moments,
    augmentation_for,
    check_without_score,
    checked_data,
    decide_units,
    no_label_for,
)
from sde_diffusion.training.conditional.classifier_loss import objective_of
from sde_diffusion.training.conditional.feed import ConditionFeed
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.distributed import Distributed
from sde_diffusion.training.ema import EMA, power_decay
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.randomness import StepRandomness
from sde_diffusion.training.time_sampling import TIME_SAMPLERS
from sde_diffusion.training.watching.held_out import split
from solvers.errors import InputError, NonFiniteError

SMALLEST_SCALE = 2.0**-14  # at smaller scales the loss would vanish in float16


class _Figures(NamedTuple):
    t: Tensor
    losses: Tensor
    loss: Tensor
    norm: Tensor


class TrainingStep(NamedTuple):
    """The result of one update; its tensors are on the device, and reading one synchronises.

    Attributes:
        number: 1, 2, ..., ``config.steps``.
        loss: mean weighted loss of this process's part of the batch, 0-d.
        grad_norm: norm of the gradient before clipping, 0-d.
        learning_rate: the learning rate of this update.
    """

    number: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float


class Trainer:
    """A model in training: ``for step in trainer`` makes the updates up to ``config.steps``, one at a time.

    The caller does everything between updates: logging, checkpoints (``groups``, ``state``), sampling, early stopping.
    ``train`` is such a loop. During the loop the network is in training mode, and torch's global generator, which
    dropout uses, is seeded at every step; both are restored at the end.

    Args:
        model: the score model; its network is moved to the device and trained in place.
        data: a data set, or an array (N, ...) that ``as_data`` understands.
        config: the options.
        engine: the processes and their devices; a single process by default.
        objective: (model, network) -> what is minimised; denoising score matching by default.

    Attributes:
        kept: positions of the data that training takes, all of them unless ``config.hold_out``.
        held: positions of the data held out.
        step: number of updates so far.
        losses: mean loss of each step since the last line of the log.
        norms: norm of the gradient of these steps, before clipping.
        skipped: number of updates since the last line skipped because the gradient overflowed in float16.
        waited: total seconds spent on getting data.

    Raises:
        ValueError: the network has no trainable parameters, its output has another shape than its input, or labels or
            batch size do not fit.

    >>> from sde_diffusion.networks import build
    >>> from sde_diffusion.sde import VPSDE
    >>> model = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE())
    >>> trainer = Trainer(model, torch.ones(16, 2), TrainConfig(steps=3, batch_size=8, warmup=2))
    >>> [(step.number, step.learning_rate) for step in trainer]
    [(1, 0.001), (2, 0.002), (3, 0.0)]
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Data | Tensor | ArrayLike,
        config: TrainConfig,
        engine: Distributed | None = None,
        objective: Callable[[ScoreModel, nn.Module], Objective] | None = None,
    ) -> None:
        data = checked_data(model, data)
        check_without_score(model, data, config)
        decide_units(model, data, config)
        engine = engine or Distributed(config.device, config.precision)
        self.model = model.to(engine.device)
        self.data = data
        self.config = config
        self.engine = engine
        self.device = engine.device
        self.network: nn.Module = model.network
        self.kept, self.held = torch.arange(len(data), device="cpu"), torch.arange(0, device="cpu")
        if config.hold_out:
            self.kept, self.held = split(data, config.hold_out, config.seed)
        self.draws = StepRandomness(config.seed, len(self.kept), config.batch_size)
        self.times = TIME_SAMPLERS[config.time_sampling]
        self.times_state = self.times.start()
        self.no_label = no_label_for(self.network, data) if config.labels else None
        self.feed = ConditionFeed(self.network, data, config, self.draws, self.no_label, self._to_device)
        shares = engine.world * config.accumulate
        if config.batch_size % shares:
            raise InputError(
                f"batch_size counts the samples of one update, {config.batch_size}; it must be a multiple of "
                f"{shares} = {engine.world} (processes) x {config.accumulate} (accumulate)"
            )
        self.micro = config.batch_size // shares
        make = objective or (lambda model, network: objective_of(model, network, config))
        self.loss = make(self.model, engine.precise(self.network)).to(self.device)
        self.weight = self.loss.learned
        self.augmentation = None if self.loss.gives_context else augmentation_for(self.network, data, config)
        self.parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InputError("the network has no parameters that require a gradient")
        if len(self.kept) < config.batch_size:
            left = f", without the {len(self.held)} held out" if config.hold_out else ""
            raise InputError(
                f"{data.name} has {len(self.kept)} samples{left}, fewer than one batch of {config.batch_size}; choose "
                f"batch_size={len(self.kept)} (--batch-size) or less"
            )
        groups = [{"params": list(self.parameters.values()), "pace": 1.0}]
        if self.weight is not None:
            beside = {f"weight.{n}": p for n, p in self.weight.named_parameters()}
            self.parameters |= beside
            groups.append({"params": list(beside.values()), "pace": self.loss.pace})
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=self.loss.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped = 0
        self.waited = 0.0
        self._unread: list[_Figures] = []
        self.objective = engine.shared(self.loss, self._try(self.loss))
        if engine.world > 1:
            self._settle()
        # Only from here on all processes have the weights of the first process.
        self.averages = {"ema": EMA(self.network, config.decays[0])}
        self.averages |= {f"ema-{decay:g}": EMA(self.network, decay) for decay in config.decays[1:]}
        self.powers = {width: EMA(self.network, power_decay(width)) for width in config.ema_widths}
        self.averages |= {f"power-{width:g}": ema for width, ema in self.powers.items()}

    def _first(self) -> tuple[Any, ...]:
        """The arguments of the objective for one sample."""
        index = torch.zeros(1, dtype=torch.int64)
        x0 = self.model.units.to_model(self.data.batch(index).to(self.device))
        t = self.model.sde.to_step(torch.full((1,), 0.5, dtype=torch.float64)).to(self.device)
        condition = self.feed.first()
        if self.config.augment:
            condition["context"] = torch.full((1, LABELS), torch.nan, device=x0.device)
        return x0, t, torch.zeros_like(x0), torch.ones_like(t), condition

    def _try(self, objective: nn.Module) -> bool:
        """Compute the loss of one sample without an update, so that an unsuitable network fails before a run exists.

        Returns:
            Whether some parameters do not enter the loss.
        """
        training = self.network.training
        self.network.eval()
        minimised = objective(*self._first())[1]
        gradients = torch.autograd.grad(minimised.mean(), list(self.parameters.values()), allow_unused=True)
        self.network.train(training)
        return any(g is None for g in gradients)

    def _settle(self) -> None:
        # After its first backward pass DistributedDataParallel changes the buckets of gradients, which changes the
        # rounding of sums over more than two processes. A backward pass here gives a resumed run the same buckets as
        # an uninterrupted run.
        training = self.network.training
        self.network.eval()
        for _ in range(2):
            torch.autograd.backward(self.objective(*self._first())[1].mean())
        self.optimizer.zero_grad()
        self.network.train(training)

    def __iter__(self) -> Generator[TrainingStep, None, None]:
        """Make the remaining updates, and yield after each."""
        was_training = self.network.training
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                while self.step < self.config.steps:
                    self.network.train()
                    self.advance()
                    figures = self._unread[-1]
                    if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                        self.read()
                    yield TrainingStep(self.step, figures.loss, figures.norm, self.config.learning_rate_at(self.step))
            finally:
                self.network.train(was_training)

    def advance(self) -> None:
        """Make one update of the weights and of their averages."""
        k, config = self.step + 1, self.config
        self.loss.begin(k)
        index = self.kept[self.draws.index(k)]
        t, factor = self.times.sample(
            config.batch_size, config.t_min, self.draws.generator("times", k), self.model.sde, self.times_state
        )
        drawn = self.feed.draw(k)
        augment = self.augmentation
        altered = augment.draw(config.batch_size, self.draws.generator("augment", k)) if augment else None
        self.optimizer.zero_grad()
        parts = []
        for j in range(config.accumulate):
            first = (self.engine.rank * config.accumulate + j) * self.micro
            rows = slice(first, first + self.micro)
            start = time.perf_counter()
            x0 = self._to_device(self.data.batch(index[rows]))
            condition = self.feed.batch(k, index[rows], drawn, rows, None if altered is None else altered[rows])
            if augment is not None and altered is not None:
                x0, augment_labels = augment.apply(x0, altered[rows])
                if config.augment:
                    condition["context"] = augment_labels
            x0 = self.model.units.to_model(x0)
            self.waited += time.perf_counter() - start
            eps = self.draws.noise(k, x0, first)
            self._seed_network(k, first)
            last = j == config.accumulate - 1
            with nullcontext() if last else self.engine.alone(self.objective):
                losses, minimised = self.objective(
                    x0, self._to_device(t[rows]), eps, self._to_device(factor[rows]), condition
                )
                torch.autograd.backward(self.engine.scaler.scale(minimised.mean() / config.accumulate))
            parts.append(losses)
        self.engine.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["pace"] * config.learning_rate_at(k)
        self.engine.scaler.step(self.optimizer)
        self.engine.scaler.update()
        for average in self.averages.values():
            average.update(k)
        losses = torch.cat(parts)
        mine = slice(self.engine.rank * len(losses), (self.engine.rank + 1) * len(losses))
        if self.times_state:
            every = self.engine.gather(losses)
            self.times_state = self.times.update(self.times_state, t, every, config.t_min)
        self._unread.append(_Figures(t, losses, (losses * self._to_device(factor[mine])).mean().float(), norm))
        self.step = k

    def _to_device(self, value: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return value
        # A copy from pageable memory would wait for all queued work of the GPU.
        return value.pin_memory().to(self.device, non_blocking=True)

    def _seed_network(self, step: int, first: int) -> None:
        # torch.manual_seed seeds every kind of device, which takes 0.14 ms: noticeable for a small network.
        seed = self.draws.network_seed(step, first)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def read(self) -> None:
        """Copy the metrics of the last steps from the device into ``losses`` and ``norms``.

        Raises:
            NotFinite: a loss or gradient was not finite; the message names step, samples and times. A gradient that
                overflowed in float16 is counted in ``skipped`` instead, and its update is skipped.
            FloatingPointError: float16 cannot hold any gradient.
        """
        if not self._unread:
            return
        loss = self.engine.mean(torch.stack([figures.loss for figures in self._unread])).tolist()
        norm = torch.stack([figures.norm for figures in self._unread]).float().tolist()
        half = self.engine.scaler.is_enabled()
        for k, (a, b) in enumerate(zip(loss, norm, strict=True)):
            if not math.isfinite(a) or not (half or math.isfinite(b)):
                self._report(self.step - len(self._unread) + k + 1, self._unread[k])
        if half and self.engine.scaler.get_scale() < SMALLEST_SCALE:
            raise NonFiniteError(
                f"the gradient of step {self.step} does not fit into float16 however small the loss is scaled "
                f"(by {self.engine.scaler.get_scale():.3g}); use precision='bf16' or 'fp32' (--precision)"
            )
        self.losses += loss
        self.norms += [value for value in norm if math.isfinite(value)]
        self.skipped += sum(not math.isfinite(value) for value in norm)
        self._unread.clear()

    def _report(self, step: int, figures: _Figures) -> None:
        bad = (~self.engine.gather(figures.losses).isfinite()).cpu()
        what = "loss" if bool(bad.any()) else "gradient"
        rows = bad if bool(bad.any()) else torch.ones_like(bad)
        t = figures.t[rows]
        index = self.kept[self.draws.index(step)][rows].tolist()
        shown = ", ".join(map(str, index[:8])) + (", ..." if len(index) > 8 else "")
        raise TrainingDivergedError(
            f"the {what} of step {step} is not finite: {len(index)} of {len(bad)} samples of "
            f"the batch, number {shown}; t from {float(t.min()):.3g} to {float(t.max()):.3g}. "
            "Checkpoints saved before are intact. The usual causes are a learning rate that is too "
            f"high (learning_rate={self.config.learning_rate:g}) and data far from unit scale",
            {"step": step, "what": what, "samples": index, "t": t.tolist()},
        )

    def take_record(self) -> dict[str, Any]:
        """The line of the log for the steps since the last one. Call ``read`` first."""
        record: dict[str, Any] = {
            "step": self.step,
            "loss": sum(self.losses) / len(self.losses),
            "grad_norm": sum(self.norms) / len(self.norms) if self.norms else None,
            "learning_rate": self.config.learning_rate_at(self.step),
        }
        if self.engine.scaler.is_enabled():
            record |= {"loss_scale": self.engine.scaler.get_scale(), "skipped": self.skipped}
        record |= self.loss.figures()
        self.losses.clear()
        self.norms.clear()
        self.skipped = 0
        return record

    def snapshot(self) -> dict[str, dict[str, Tensor]]:
        """The power averages, by file."""
        return {name: average.state() for name, average in self.averages.items() if name.startswith("power-")}

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by file."""
        state = self.optimizer.state_dict()["state"]
        names = list(self.parameters)
        moments = {f"{names[i]}.{n}": v for i, entry in state.items() for n, v in entry.items()}
        groups = {"model": self.network.state_dict(), "optimizer": moments}
        groups |= {name: average.state() for name, average in self.averages.items()}
        if self.weight is not None:
            groups["weight"] = self.weight.state_dict()
        if self.times_state:
            groups["times"] = self.times_state
        return groups

    def state(self) -> dict[str, Any]:
        """The state of a checkpoint. Call ``read`` first."""
        unlogged: dict[str, Any] = {"loss": self.losses, "grad_norm": self.norms}
        if not self.engine.scaler.is_enabled():
            return {"step": self.step, "unlogged": unlogged}
        unlogged["skipped"] = self.skipped
        return {"step": self.step, "unlogged": unlogged, "scaler": self.engine.scaler.state_dict()}

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, bit for bit.

        Raises:
            CheckpointError: the checkpoint belongs to another network.
        """
        try:
            check_weights(self.network, groups["model"])
            self.network.load_state_dict(groups["model"])
            for name, average in self.averages.items():
                average.restore(groups[name])
            if self.weight is not None:
                self.weight.load_state_dict(groups["weight"])
            if self.times_state:
                self.times_state = dict(groups["times"])
            moments = adamw_moments(self.parameters, groups["optimizer"])
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            self.step = state["step"]
            self.losses = list(state["unlogged"]["loss"])
            self.norms = list(state["unlogged"]["grad_norm"])
            self.skipped = state["unlogged"].get("skipped", 0)
            if self.engine.scaler.is_enabled():
                self.engine.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint belongs to another network: {error}") from None
