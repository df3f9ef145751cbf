"""The options of a training run, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sde_diffusion.training.ema import LARGEST_WIDTH
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.time_sampling import TIME_SAMPLERS
from solvers.errors import InputError, InputTypeError, choose


def constant(progress: float) -> float:
    """1: the learning rate stays.

    >>> constant(0.5)
    1.0
    """
    return 1.0


def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2: the learning rate falls from 1 to 0 (Loshchilov & Hutter 2017, eq. 5).

    >>> [round(cosine(p), 6) for p in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES = {"constant": constant, "cosine": cosine}
PRECISIONS = ("fp32", "bf16", "fp16")
TRACKERS = ("none", "tensorboard", "wandb")


@dataclass(frozen=True)
class TrainConfig:
    """Every option of ``train``; JSON can hold all of them.

    Args:
        steps: updates of the weights.
        batch_size: samples in one update.
        learning_rate: of AdamW, after the warm-up.
        warmup: updates over which the learning rate rises linearly from 0.
        schedule: after the warm-up: "cosine" to 0 at the last step, or "constant".
        weight_decay: of AdamW.
        clip: largest norm of the gradient; a longer one is scaled down to it.
        weight: weight of the loss, a name in ``LOSS_WEIGHTS``.
        times: how times are drawn, a name in ``TIME_SAMPLERS``.
        t_min: smallest time that is trained on, > 0.
        ema: decay of the average of the weights, in [0, 1); several are kept side by side, and samples are drawn
            with the first.
        ema_widths: widths of power averages whose snapshots allow an average of any width later (``posthoc``).
        snapshot_every: updates from one such snapshot to the next.
        labels: give the network the labels of the data.
        drop_label: probability that a sample is shown without its label, for guidance.
        flip: mirror images left and right with probability 1/2.
        augment: probability of each part of EDM's augmentation, in [0, 1], passed to the network as its context
            (``sde_diffusion.data.augment``).
        precision: of the network: "fp32", "bf16" or "fp16". Process, loss, weights and averages stay float32.
        accumulate: micro-batches in one update. Together with the number of processes it divides the batch; the
            result does not change beyond rounding.
        seed: of data order, times, noise and dropout.
        device: "cpu", "cuda", or "auto": cuda where there is one.
        tracker: "tensorboard" or "wandb" get every line of the log too.
        log_every: updates from one line of metrics.jsonl to the next.
        checkpoint_every: updates from one checkpoint to the next.
        keep: how many checkpoints are kept, the newest ones.

    Raises:
        ValueError: a value out of range or an unknown name.
        TypeError: a value of the wrong type.

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: steps must be at least 1; got 0
    """

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    weight: str = "simple"
    times: str = "stratified"
    t_min: float = 1e-5
    ema: float | tuple[float, ...] = 0.999
    ema_widths: tuple[float, ...] = ()
    snapshot_every: int = 500
    labels: bool = False
    drop_label: float = 0.1
    flip: bool = False
    augment: float = 0.0
    precision: str = "fp32"
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    tracker: str = "none"
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        choose(self.schedule, SCHEDULES, "schedule")
        choose(self.weight, LOSS_WEIGHTS, "weight")
        choose(self.times, TIME_SAMPLERS, "times")
        choose(self.device, dict.fromkeys(("auto", "cpu", "cuda")), "device")
        choose(self.precision, dict.fromkeys(PRECISIONS), "precision")
        choose(self.tracker, dict.fromkeys(TRACKERS), "tracker")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate", "snapshot_every"):
            _check(name, getattr(self, name), int, lambda v: v >= 1, "at least 1")
        for name in ("warmup", "seed"):
            _check(name, getattr(self, name), int, lambda v: v >= 0, "at least 0")
        for name in ("learning_rate", "clip"):
            _check(name, getattr(self, name), float, lambda v: 0 < v < math.inf, "positive")
        _check("weight_decay", self.weight_decay, float, lambda v: 0 <= v < math.inf, "at least 0")
        _check("t_min", self.t_min, float, lambda v: 0 < v < 1, "in (0, 1)")
        _check("augment", self.augment, float, lambda v: 0 <= v <= 1, "in [0, 1]")
        _check("drop_label", self.drop_label, float, lambda v: 0 <= v <= 1, "in [0, 1]")
        for name in ("labels", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise InputTypeError(f"{name} must be true or false; got {getattr(self, name)!r}")
        # JSON and TOML know lists only.
        if isinstance(self.ema, (list, tuple)):
            object.__setattr__(self, "ema", tuple(self.ema))
        for decay in self.decays:
            _check("ema", decay, float, lambda v: 0 <= v < 1, "in [0, 1)")
        if not self.decays:
            raise InputError("ema must name one decay at least; got none")
        if not isinstance(self.ema_widths, (list, tuple)):
            raise InputTypeError(f"ema_widths must be a list of numbers; got {self.ema_widths!r}")
        object.__setattr__(self, "ema_widths", tuple(self.ema_widths))
        for width in self.ema_widths:
            _check("ema_widths", width, float, lambda v: 0 < v <= LARGEST_WIDTH, f"in (0, {LARGEST_WIDTH}]")
        for name, values in (("ema", self.decays), ("ema_widths", self.ema_widths)):
            if len(set(values)) < len(values):
                raise InputError(f"{name} names an average twice: {', '.join(map(str, values))}")

    @property
    def decays(self) -> tuple[float, ...]:
        """The decays of the exponential averages; samples are drawn with the first."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def with_options(self, options: Mapping[str, Any]) -> TrainConfig:
        """A copy with some options changed.

        Raises:
            ValueError: an unknown option; the message suggests the nearest.

        >>> TrainConfig().with_options({"lerning_rate": 1e-3})
        Traceback (most recent call last):
        ...
        solvers.errors.InputError: unknown training option 'lerning_rate'; did you mean 'learning_rate'? ...
        """
        for name in options:
            choose(name, {field.name: 0 for field in fields(self)}, "training option")
        return replace(self, **options)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update number ``step`` = 1, 2, ..., ``steps``.

        >>> config = TrainConfig(steps=110, warmup=10, learning_rate=1.0)
        >>> [round(config.learning_rate_at(k), 3) for k in (1, 10, 60, 110)]
        [0.1, 1.0, 0.5, 0.0]
        """
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        after = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * SCHEDULES[self.schedule](after)

    def to_dict(self) -> dict[str, Any]:
        """Every option as JSON can hold it.

        >>> TrainConfig(**TrainConfig(steps=7).to_dict()).steps
        7
        """
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _check(name: str, value: Any, kind: type, test: Callable[[Any], bool], range_: str) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        what = "a whole number" if kind is int else "a number"
        raise InputTypeError(f"{name} must be {what}; got {value!r}")
    if not test(value):
        raise InputError(f"{name} must be {range_}; got {value}")
