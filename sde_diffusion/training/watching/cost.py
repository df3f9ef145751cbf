"""The cost of a training run, measured on a few updates of a copy of the model before the run starts."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, replace

import torch

from sde_diffusion.data import Data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.trainer import Trainer

MEASURED = 3  # updates, after one that is not counted
PATIENCE = 20.0  # seconds after which no further update is measured
LONG = 3600.0  # seconds from which a line says how to train for less


@dataclass(frozen=True)
class Cost:
    """The expected cost of a run.

    Attributes:
        parameters: number of trainable values.
        seconds: of one update.
        measured: number of updates that this is the median of.
        updates: number of updates of the run.
        device: "cpu" or "cuda".
    """

    parameters: int
    seconds: float
    measured: int
    updates: int
    device: str

    @property
    def total(self) -> float:
        """Expected seconds of the run."""
        return self.seconds * self.updates

    def __str__(self) -> str:
        """The cost as one line.

        >>> str(Cost(1_150_000, 0.31, 3, 3000, "cpu"))
        '1,150,000 parameters, 0.31 s an update on cpu (3 measured): 3,000 updates take about 16 min'
        """
        pace = f"{self.seconds:.2g} s" if self.seconds >= 0.1 else f"{1000 * self.seconds:.2g} ms"
        return (
            f"{self.parameters:,} parameters, {pace} an update on {self.device} ({self.measured} measured): "
            f"{self.updates:,} updates take about {duration(self.total)}"
        )

    def advice(self, size: str | None) -> str:
        """The advice for a shorter training, if the run is long; empty otherwise.

        >>> Cost(28_000_000, 5.0, 3, 3000, "cpu").advice("large")
        'to train for less: --network-size medium or small, fewer --steps, or a GPU'
        """
        if self.total < LONG:
            return ""
        smaller = {"large": "--network-size medium or small, ", "medium": "--network-size small, "}.get(size or "", "")
        return f"to train for less: {smaller}fewer --steps{', or a GPU' if self.device == 'cpu' else ''}"


def measure_cost(model: ScoreModel, data: Data, config: TrainConfig, done: int = 0) -> Cost:
    """The cost of a run: the median of three updates of a copy of the model, after one that is not counted.

    Nothing of the model, of the data or of torch's random state changes. If an update takes long, fewer are measured.

    Args:
        model: the untrained model.
        data: the training data.
        config: the options of the run.
        done: number of updates made before, when a run is resumed.
    """
    trainer = Trainer(copy.deepcopy(model), data, replace(config, steps=MEASURED + 1, tracker="none"))
    seconds = []
    start = begin = time.perf_counter()
    for step in trainer:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        now = time.perf_counter()
        seconds.append(now - begin)
        if now - start > PATIENCE and step.number > 1:
            break
        begin = time.perf_counter()
    counted = seconds[1:]
    parameters = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    return Cost(parameters, statistics.median(counted), len(counted), config.steps - done, trainer.device.type)


def duration(seconds: float) -> str:
    """A time in words.

    >>> [duration(s) for s in (0.4, 42, 930, 20_000, 300_000)]
    ['1 s', '42 s', '16 min', '5.6 h', '3.5 days']
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
