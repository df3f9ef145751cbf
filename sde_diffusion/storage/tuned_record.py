"""The record of a tuned solver: what nfe-NFE.json holds."""

from __future__ import annotations

from typing import Any, TypedDict

from sde_diffusion.storage.record_types import ExtractorEntry, LossEntry, SolverEntry, Steps, WeightsEntry


class NoiseEntry(TypedDict):
    """The best strengths of noise that tuning found, and whether the solver has them.

    The distances are those of samples to real ones, which chose nothing but whether noise is taken. An interval of 95 %
    belongs to their difference: noise is taken where it is below 0.
    """

    strengths: list[float]
    taken: bool
    criterion: str
    extractor: ExtractorEntry
    real: str
    samples: int
    distance: float
    distance_without: float
    difference: list[float]


class _TunedRecordOptional(TypedDict, total=False):
    loss: LossEntry
    rmse: float
    default_rmse: float
    settings: dict[str, Any]
    error: float
    default_error: float
    stages: dict[str, float]
    teacher_error: float
    condition: str
    noise: NoiseEntry


class TunedRecord(_TunedRecordOptional):
    """A tuned solver and the errors that tuning measured."""

    format: int
    kind: str
    model: WeightsEntry
    nfe: Steps
    solver: SolverEntry
