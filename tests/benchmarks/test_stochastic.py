"""The comparison of stochastic solvers: its rows, and where others are better."""

from __future__ import annotations

import torch

from benchmarks.stochastic.__main__ import report, row
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED


def test_rows_are_of_the_asked_evaluations_and_samples() -> None:
    extractor = make_extractor("digits")
    reference = FeatureStatistics.of(load_data("digits"), extractor)
    model = load(BUNDLED).eval()
    found = row(model, extractor, reference, "sde", 2, 650)
    assert (found["n"], found["used"]) == (650, 2)
    low, high = found["frechet"][1:]
    assert 0 < low < found["frechet"][0] < high
    torch.manual_seed(1)  # seeds of samples alone matter
    assert row(model, extractor, reference, "sde", 2, 650)["kid"] == found["kid"]


def test_the_report_says_where_others_are_better_and_by_how_much() -> None:
    own = {"frechet": [1.0, 0.9, 1.1], "kid": [0.004, 0.003, 0.005], "n": 500, "used": 10}
    near = {**own, "frechet": [0.95, 0.85, 1.05], "kid": [0.0045, 0.004, 0.005]}
    far = {**own, "frechet": [0.5, 0.4, 0.6], "kid": [0.001, 0.0, 0.002]}
    text = report(
        {"commands": {"a": "c"}, "rows": {"a": {"10 sde": own, "10 sa": near, "10 restart": far, "20 sa": far}}}
    )
    assert "- 10 NFE: `sa` is below `sde` by Frechet." in text
    assert (
        "- 10 NFE: `restart` is below `sde` by Frechet and 1000 KID, intervals apart for Frechet and 1000 KID." in text
    )
    assert text.count("is below") == 2
    assert "| `sa` | 0.95 (0.85 to 1.05) | 0.5 (0.4 to 0.6) |" in text
    alone = report({"commands": {"a": "c"}, "rows": {"a": {"10 sde": far, "10 sa": own}}})
    assert "Nowhere is another stochastic solver below `sde`." in alone
