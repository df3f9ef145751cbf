"""Sizes of the benchmark: the full one for a GPU, and a miniature for the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

NFE = (5, 8, 10, 15, 20, 50)
SOLVERS = ("ddim", "dpm++2m", "unipc", "deis", "heun", "pf-ode", "tuned")


@dataclass(frozen=True)
class Settings:
    """What the benchmark does.

    Attributes:
        images: training images; all where None.
        shape: of an image; smaller ones are averages over blocks of pixels.
        network: settings of the U-Net.
        batch: images of an update.
        rate: the largest learning rate.
        warmup: updates until it is reached.
        width: of the power average of the weights, as a share of the training time.
        minutes: of training.
        precision: of the network in training and sampling.
        compiled: whether the network is compiled.
        samples: samples of each row.
        sampling_batch: samples integrated together.
        nfe: budgets.
        solvers: rows of ours.
        tuning_minutes: of tuning a solver for a budget.
        pilot: samples on which the schedulers of diffusers are compared, to find the best.
        schedulers: the most that are compared; all where None.
        classifier_epochs: of the classifier that takes features without Inception weights.
    """

    images: int | None = None
    shape: tuple[int, int, int] = (3, 32, 32)
    network: dict[str, Any] = field(
        default_factory=lambda: {
            "channels": 144, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,), "dropout": 0.13,
            "embedding": "log",
        }
    )  # fmt: skip
    batch: int = 512
    rate: float = 4e-4
    warmup: int = 500
    width: float = 0.05
    minutes: float = 20.0
    precision: str = "bf16"
    compiled: bool = True
    samples: int = 50_000
    sampling_batch: int = 2048
    nfe: tuple[int, ...] = NFE
    solvers: tuple[str, ...] = SOLVERS
    tuning_minutes: float = 2.0
    pilot: int = 64
    schedulers: int | None = None
    classifier_epochs: int = 12


FULL = Settings()
MINIATURE = replace(
    FULL, images=1000, shape=(3, 8, 8), batch=32, warmup=10, rate=1e-3, minutes=0.5, precision="fp32", compiled=False,
    samples=400, sampling_batch=100, nfe=(5, 8), tuning_minutes=0.2, pilot=8, schedulers=6, classifier_epochs=2,
    network={"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "embedding": "log"},
)  # fmt: skip
