"""The objectives of DDPM: what the network predicts, the loss and the variance of the steps."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 100
"""T of the process, whose betas rise linearly from 0.1 / T to 20 / T."""

PREDICTIONS = {"mean": "mu~", "noise": "eps", "data": "x_0"}
LOSSES = {"L": "likelihood", "L_simple": "output"}
VARIANCES = {"fixed": False, "learned": True}


@dataclass(frozen=True)
class Objective:
    """One cell of the table: predicts, loss and variance are keys of the tables of this module."""

    predicts: str
    loss: str
    variance: str

    @property
    def name(self) -> str:
        """The parts, joined to a file name."""
        return f"{self.predicts}-{self.loss}-{self.variance}"


OBJECTIVES = [Objective(p, loss, v) for p in PREDICTIONS for loss in LOSSES for v in VARIANCES]

PAPER = {
    "mean-L-learned": (7.28, 23.69),
    "mean-L-fixed": (8.06, 13.22),
    "noise-L-fixed": (7.67, 13.51),
    "noise-L_simple-fixed": (9.46, 3.17),
}
"""(Inception score, FID) on CIFAR-10, Ho et al. 2020, table 2; the other cells are unstable there, or not measured."""
