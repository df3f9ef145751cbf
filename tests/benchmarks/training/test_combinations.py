"""The combinations cover what there is, and each of them can be trained and sampled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.training.combinations import COMBINATIONS, Combination, build, main, noise_error, options, samples
from sde_diffusion import train
from sde_diffusion.data import load_data
from sde_diffusion.models.score_model import PREDICTS
from sde_diffusion.sde import SDES
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.time_sampling import TIME_SAMPLERS


@pytest.mark.parametrize(
    ("field", "names"), [("sde", SDES), ("predicts", PREDICTS), ("weight", LOSS_WEIGHTS), ("times", TIME_SAMPLERS)]
)
def test_everything_is_covered_twice(field: str, names: object) -> None:
    counts = Counter(getattr(combination, field) for combination in COMBINATIONS)
    assert set(counts) == set(names)  # type: ignore[call-overload]
    assert min(counts.values()) >= 2
    assert sum(combination.variance for combination in COMBINATIONS) >= 2
    assert len({combination.name for combination in COMBINATIONS}) == len(COMBINATIONS)


@pytest.mark.slow
def test_the_command_measures_one_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["combinations", "--seconds", "0.1", "--samples", "65", "--only", "vp,velocity", "--folder"]
    monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path)])
    main()
    name = "vp,velocity,min-snr,stratified"
    row = json.loads((tmp_path / f"{name}.json").read_text())
    assert row["steps"] == 20 and 0 < row["noise"] < 2 and row["frechet"] > 0 and row["nats"] < 0
    stamp = (tmp_path / f"{name}.json").stat().st_mtime_ns
    main()
    assert (tmp_path / f"{name}.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda combination: combination.name)
def test_each_trains_and_samples(combination: Combination) -> None:
    """Twelve steps lower the error of the noise on held-out digits below that of a network that returns 0."""
    data = load_data("digits", split="test")
    before = noise_error(build(combination), data)
    model = train(build(combination), load_data("digits"), **{**options(combination, 12), "ema": 0.0})
    x = samples(model, combination, 2)
    assert x.shape == (2, 1, 8, 8) and bool(torch.isfinite(x).all())
    assert noise_error(model, data) < before
