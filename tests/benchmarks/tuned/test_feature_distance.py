"""The page of distances of features: intervals, and where nearer to the flow is not better."""

from __future__ import annotations

from benchmarks.tuned.feature_distance import report

NEAR = {"frechet": [3.0, 2.5, 3.5], "kid": [0.002, 0.001, 0.003], "rms": 0.1, "n": 5000}
FAR = {"frechet": [1.0, 0.8, 1.2], "kid": [0.001, 0.0, 0.002], "rms": 0.2, "n": 5000}


def test_disagreements_are_named_where_intervals_are_apart() -> None:
    text = report({"command": "c", "rows": {"a network": {"8 pf-ode": NEAR, "8 ddim": FAR, "5 other": FAR}}})
    assert "- 8 NFE: `pf-ode` is nearer to the flow, `ddim` has the smaller Frechet distance." in text
    assert text.count("is nearer to the flow") == 1 and "3 (2.5 to 3.5) | 2 (1 to 3)" in text
    wide = {**FAR, "frechet": [1.0, 0.2, 2.6]}
    assert "Nowhere" in report({"command": "c", "rows": {"a network": {"8 pf-ode": NEAR, "8 ddim": wide}}})
    worse = {**FAR, "rms": 0.05}
    assert "Nowhere" in report({"command": "c", "rows": {"a network": {"8 pf-ode": NEAR, "8 ddim": worse}}})
