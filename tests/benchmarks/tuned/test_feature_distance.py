"""The page of distances of features: intervals, and where nearer to the flow is not better."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.tuned import feature_distance
from benchmarks.tuned.feature_distance import report
from benchmarks.tuned.feature_pairs import paired, sentences
from sde_diffusion.evaluation.metrics import Moments, unbiased_frechet_distance
from sde_diffusion.storage.locate import BUNDLED

NEAR = {"frechet": [3.0, 2.5, 3.5], "kid": [0.002, 0.001, 0.003], "rms": 0.1, "n": 5000}
FAR = {"frechet": [1.0, 0.8, 1.2], "kid": [0.001, 0.0, 0.002], "rms": 0.2, "n": 5000}


def test_the_table_is_sorted_by_nfe_and_has_the_sentences_of_pairs() -> None:
    pair = {"nfe": 8, "near": "pf-ode", "far": "ddim", "rms": [0.1, 0.2], "frechet": [2.0, 1.5, 2.5]}
    rows = {"8 pf-ode": NEAR, "8 ddim": FAR, "5 other": FAR}
    text = report({"commands": {"a": "c"}, "rows": {"a network": rows}, "pairs": {"a network": [pair]}})
    assert text.index("| 5 | other |") < text.index("| 8 | pf-ode | 3 (2.5 to 3.5) | 2 (1 to 3) | 0.1 | 5,000 |")
    assert "- 8 NFE: `pf-ode` (RMS 0.1) is above `ddim` (0.2) by 2.000 (1.500 to 2.500)." in text


def test_pairs_are_of_one_nfe_or_with_the_flow_and_the_nearer_one_comes_first() -> None:
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    reference = Moments.of(x)
    features = {"8 a": x + 0.2, "8 b": x + 0.1, "8 as a": x + 0.2, "5 a": x + 0.4, "5 c": x + 0.7, "48 flow": x + 0.3}
    distance = {"8 a": 0.2, "8 b": 0.4, "8 as a": 0.2, "5 a": 0.5, "5 c": 0.52, "48 flow": 0.0}
    rows = {
        key: {"frechet": [unbiased_frechet_distance(value, reference).value], "rms": distance[key]}
        for key, value in features.items()
    }
    found = paired(rows, features, reference)
    assert [(pair["nfe"], pair["near"], pair["far"]) for pair in found] == [
        (5, "flow", "a"), (5, "flow", "c"), (8, "a", "b"), (8, "flow", "a"), (8, "flow", "b"),
    ]  # fmt: skip
    value, low, high = found[2]["frechet"]
    assert value == pytest.approx(3 * (0.2**2 - 0.1**2), rel=1e-3) and 0 < low < value < high < 2 * value
    lines = sentences(found)
    assert lines[0].startswith("Of 5 pairs of solvers") and "distance in 2 and the larger in 3" in lines[0]
    assert sum("`flow`" in line for line in lines) == 2
    assert sentences(found[:1]) == [sentences(found[:1])[0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* are few")
def test_a_command_resumes_from_rows_and_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_distance, "PAIRED", 4)
    words = ["x", "--run", str(BUNDLED), "--n", "70", "--nfe", "3", "--samples", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0.01", "--only", "pf-ode", "flow", "tuned, rmse"])
    feature_distance.main()
    content = json.loads((tmp_path / "feature_distance.json").read_text())
    (rows,), (pairs,) = content["rows"].values(), content["pairs"].values()
    assert set(rows) == {"3 pf-ode", "48 flow", "3 tuned, rmse"}
    assert rows["48 flow"]["rms"] < 0.01 < rows["3 tuned, rmse"]["rms"] <= rows["3 pf-ode"]["rms"]
    assert [pair["near"] for pair in pairs].count("flow") == 2
    assert next(iter(content["commands"].values())).endswith(
        "--n 70 --nfe 3 --samples DIR --out DIR --minutes 0.01 --only pf-ode flow 'tuned, rmse'"
    )

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    for name in ("solve", "tuned_each"):
        monkeypatch.setattr(feature_distance, name, fail)
    (tmp_path / "feature_distance.json").unlink()
    feature_distance.main()
    assert json.loads((tmp_path / "feature_distance.json").read_text())["pairs"] == content["pairs"]
    monkeypatch.setattr(sys, "argv", [*sys.argv[:4], "71", *sys.argv[5:]])
    (tmp_path / "feature_distance.json").unlink()
    with pytest.raises(AssertionError, match="drawn again"):
        feature_distance.main()
