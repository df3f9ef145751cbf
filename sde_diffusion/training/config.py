"""The options of a training run, with their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sde_diffusion.data.normalization import AUTO, METHODS
from sde_diffusion.training.ema import LARGEST_WIDTH
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.time_sampling import TIME_SAMPLERS
from solvers.errors import InputError, InputTypeError, choose


def constant(progress: float) -> float:
    """1: a constant learning rate.

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
DEVICES = ("auto", "cpu", "cuda")


# Names of fields in files of earlier versions.
RENAMED = {"times": "time_sampling"}


def setting(
    default: Any,
    text: str,
    *,
    usual: str | None = None,
    options: tuple[str, ...] = (),
    values: Iterable[str] = (),
) -> Any:
    """A field with its help text for the command line, the docstring and docs/training.md.

    Args:
        default: the default value.
        text: the help text.
        usual: the default in words, if it is not a fixed value.
        options: the spellings on the command line; ``--the-name`` by default.
        values: the names that it takes, which the shell completes.
    """
    return field(default=default, metadata={"help": text, "usual": usual, "options": options, "values": tuple(values)})


def _names(table: Iterable[str]) -> str:
    return ", ".join(table)


@dataclass(frozen=True)
class TrainConfig:
    """Every option of ``train``, with values that JSON can hold.

    Raises:
        ValueError: a value out of range or an unknown name.
        TypeError: a value of the wrong type.

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: steps must be at least 1; got 0
    """

    steps: int = setting(3000, "Number of updates of the weights.")
    batch_size: int = setting(128, "Number of samples in one update, over all processes.")
    learning_rate: float = setting(
        2e-3, "Learning rate of AdamW after the warm-up.", options=("--learning-rate", "--lr")
    )
    warmup: int = setting(100, "Number of updates over which the learning rate rises linearly from 0.")
    schedule: str = setting(
        "cosine", f"Learning-rate schedule after the warm-up: {_names(SCHEDULES)}.", values=SCHEDULES
    )
    weight_decay: float = setting(0.0, "Weight decay of AdamW.")
    clip: float = setting(1.0, "Largest norm of the gradient; larger gradients are scaled down to it.")
    weight: str = setting(
        "simple",
        f"Weight of the loss over time: {_names(LOSS_WEIGHTS)}.",
        usual="by what the network predicts",
        values=LOSS_WEIGHTS,
    )
    time_sampling: str = setting(
        "stratified",
        f"Distribution of the training times: {_names(TIME_SAMPLERS)}.",
        usual="by what the network predicts",
        values=TIME_SAMPLERS,
    )
    t_min: float = setting(1e-5, "Smallest training time, in (0, 1).")
    ema: float | tuple[float, ...] = setting(
        0.999,
        "Decay of the average of the weights, in [0, 1). Several decays give several averages; samples are drawn "
        "with the first.",
    )
    ema_widths: tuple[float, ...] = setting(
        (),
        "Width of a power average, such as 0.05. Snapshots of two widths give an average of any width after training.",
        usual="none",
        options=("--ema-widths", "--ema-width"),
    )
    snapshot_every: int = setting(500, "Number of updates between snapshots of the power averages.")
    labels: bool = setting(False, "Train class-conditionally.")
    drop_label: float = setting(0.1, "Probability of dropping a label, for classifier-free guidance.")
    drop_condition: float = setting(
        0.1,
        "Probability of dropping a condition, for classifier-free guidance; 0 gives a network that requires one.",
    )
    condition_noise: float = setting(
        0.0,
        "Largest noise level of condition images, from 0 to 1: each is noised to a random level, which the network "
        "receives (noise-conditioning augmentation).",
    )
    kl_weight: float = setting(
        1e-3,
        "Weight of the KL divergence of a kl autoencoder: 2 s^2 for a decoder of standard deviation s.",
    )
    commitment: float = setting(0.25, "Weight of the distance of latents to their codes, of a vq autoencoder.")
    perceptual: float = setting(
        0.1, "Weight of the perceptual distance of an autoencoder, in the features of the classifier of --features."
    )
    adversarial: float = setting(
        0.0,
        "Weight of the discriminator of an autoencoder: its gradient over that of the reconstruction, such as 0.5; 0 "
        "for no discriminator.",
    )
    adversarial_after: int = setting(
        500, "Number of updates in which the discriminator learns alone, before the autoencoder sees it."
    )
    normalize: str = setting(
        AUTO,
        "Normalization of the data: standard (mean 0 and deviation 1 per entry of vectors and per channel of all "
        "other data), range ([-1, 1]), none, or auto: range for images of bytes, standard for floats.",
        values=(AUTO, *METHODS),
    )
    flip: bool = setting(False, "Random horizontal flips of images.")
    augment: float = setting(
        0.0,
        "Probability of each part of EDM's augmentation of images, such as 0.12; its labels are the network's context.",
    )
    precision: str = setting(
        "fp32",
        f"Precision of the network: {_names(PRECISIONS)}. Loss, weights and averages stay float32.",
        values=PRECISIONS,
    )
    accumulate: int = setting(1, "Number of micro-batches in one update (gradient accumulation).")
    seed: int = setting(0, "Random seed of initial weights, data order, times, noise and dropout.")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one.", values=DEVICES)
    tracker: str = setting("none", f"Also log metrics and samples to a tracker: {_names(TRACKERS)}.", values=TRACKERS)
    log_every: int = setting(50, "Number of updates between lines of metrics.jsonl.")
    checkpoint_every: int = setting(500, "Number of updates between checkpoints.")
    sample_every: int = setting(250, "Number of updates between samples in the run folder; 0 for none.")
    hold_out: float = setting(
        0.0,
        "Share of the data left out of training, on which the held-out loss is measured; data sets with a test split "
        "need none.",
    )
    keep: int = setting(2, "Number of checkpoints to keep; older ones are deleted.")

    def __post_init__(self) -> None:
        choose(self.schedule, SCHEDULES, "schedule")
        choose(self.weight, LOSS_WEIGHTS, "weight")
        choose(self.time_sampling, TIME_SAMPLERS, "time sampling")
        choose(self.normalize, dict.fromkeys((AUTO, *METHODS)), "normalize")
        choose(self.device, dict.fromkeys(DEVICES), "device")
        choose(self.precision, dict.fromkeys(PRECISIONS), "precision")
        choose(self.tracker, dict.fromkeys(TRACKERS), "tracker")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "accumulate", "snapshot_every"):
            _check(name, getattr(self, name), int, lambda v: v >= 1, "at least 1")
        for name in ("warmup", "seed", "sample_every", "adversarial_after"):
            _check(name, getattr(self, name), int, lambda v: v >= 0, "at least 0")
        for name in ("learning_rate", "clip"):
            _check(name, getattr(self, name), float, lambda v: 0 < v < math.inf, "positive")
        _check("weight_decay", self.weight_decay, float, lambda v: 0 <= v < math.inf, "at least 0")
        _check("hold_out", self.hold_out, float, lambda v: 0 <= v < 1, "in [0, 1)")
        _check("t_min", self.t_min, float, lambda v: 0 < v < 1, "in (0, 1)")
        _check("augment", self.augment, float, lambda v: 0 <= v <= 1, "in [0, 1]")
        for name in ("drop_label", "drop_condition", "condition_noise"):
            _check(name, getattr(self, name), float, lambda v: 0 <= v <= 1, "in [0, 1]")
        for name in ("kl_weight", "commitment", "perceptual", "adversarial"):
            _check(name, getattr(self, name), float, lambda v: 0 <= v < math.inf, "at least 0")
        for name in ("labels", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise InputTypeError(f"{name} must be true or false; got {getattr(self, name)!r}")
        # JSON and TOML have lists but no tuples.
        if isinstance(self.ema, (list, tuple)):
            object.__setattr__(self, "ema", self.ema[0] if len(self.ema) == 1 else tuple(self.ema))
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
            if name in RENAMED:
                raise InputError(f"the training option '{name}' is called '{RENAMED[name]}' now")
            choose(name, dict.fromkeys(f.name for f in fields(self)), "training option")
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

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TrainConfig:
        """The options of a file, also of an earlier version.

        >>> TrainConfig.from_dict({"times": "uniform"}).time_sampling
        'uniform'
        """
        return cls().with_options({RENAMED.get(name, name): value for name, value in options.items()})

    def to_dict(self) -> dict[str, Any]:
        """Every option as a JSON value.

        >>> TrainConfig.from_dict(TrainConfig(steps=7).to_dict()).steps
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


def _described() -> str:
    """The docstring of ``TrainConfig`` with its fields."""
    lines = [f"        {f.name}: {f.metadata['help'][0].lower()}{f.metadata['help'][1:]}" for f in fields(TrainConfig)]
    first, rest = (TrainConfig.__doc__ or "").split("\n\n", 1)
    return "\n".join([first, "", "    Args:", *lines, "", rest])


TrainConfig.__doc__ = _described()
