"""The tables of the pages are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from benchmarks.tuned.feature_distance import matrix

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SETS = {"normal", "moons", "rings", "checkerboard", "swiss-roll"}


def test_the_page_on_evaluation_has_the_tables_of_coverage() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text().splitlines()
    rows = [line for line in (RESULTS / "coverage.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 25 and [row for row in rows if row not in page] == []


def test_the_page_on_losses_has_the_table_of_objectives() -> None:
    page = (ROOT / "docs" / "losses.md").read_text().splitlines()
    rows = [line for line in (RESULTS / "ddpm-table.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) >= 6 and [row for row in rows if row not in page] == []


def test_the_page_on_tuning_has_the_table_of_the_ranges() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text().splitlines()
    lines = (RESULTS / "tuned_ranges.md").read_text().splitlines()
    rows = [line for line in lines[: lines.index(next(x for x in lines if x.startswith("| all")))] if "|" in line]
    assert len(rows) >= 7 and [row for row in rows if row not in page] == []


def test_the_page_on_stochastic_solvers_has_the_figures_of_the_results() -> None:
    page = (ROOT / "docs" / "solvers" / "sde.md").read_text()
    for rows in json.loads((RESULTS / "stochastic.json").read_text())["rows"].values():
        budgets = [nfe for nfe in (10, 20, 50, 100) if any(key.startswith(f"{nfe} ") for key in rows)]
        for solver in {key.split(" ")[1] for key in rows}:
            figures = [rows.get(f"{nfe} {solver}", {}).get("frechet") for nfe in budgets]
            cells = ["" if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found) for found in figures]
            assert f"| `{solver}` | {' | '.join(cells)} |" in page


def test_the_page_on_tuning_has_the_tables_of_feature_distances() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text().splitlines()
    content = json.loads((RESULTS / "feature_distance.json").read_text())
    assert len(content["rows"]) == 2 and set(content["rows"]) == set(content["pairs"]) == set(content["commands"])
    for rows in content["rows"].values():
        assert all(row["n"] >= 5000 for row in rows.values())
        assert [line for line in matrix(rows) if line not in page] == []


@pytest.mark.parametrize("table", ["false_differences", "metrics"])
def test_intervals_hold_as_often_as_they_say(table: str) -> None:
    content = json.loads((RESULTS / "coverage.json").read_text())
    if table == "false_differences":
        cells = content[table]
        assert {(x["law"], x["n"], x["solvers"]) for x in cells} == {
            (law, n, k) for law in ("normal", "log-normal") for n in (16, 64, 256) for k in (2, 6, 12)
        }
        assert all(abs(x["share"] - 0.05) <= 0.02 + 1.96 * x["standard_error"] for x in cells)
        return
    figures = {x["figure"] for x in content[table]}
    assert figures == {"frechet", "kid", "mmd", "sliced-wasserstein", "precision", "recall", "density", "coverage"}
    frechet = [x for x in content[table] if x["figure"] == "frechet"]
    assert {(x["n"], x["d"]) for x in frechet} == {(200, 8), (2000, 20), (5000, 64)}
    assert all(0.9 <= x["coverage"] <= 0.98 for x in frechet)


def test_the_page_on_training_has_the_table_of_outliers() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    rows = json.loads((RESULTS / "outliers.json").read_text())["rows"]
    ours = [row for row in rows if row["recipe"] == "velocity"]
    assert {(row["set"], row["seed"]) for row in ours} == {(name, seed) for name in SETS for seed in (0, 1, 2)}
    assert sum(row["beyond"] for row in ours) == 0
    for name in SETS:
        some = [row for row in ours if row["set"] == name]
        label = "N(0, I)" if name == "normal" else name
        largest, sliced = max(row["largest"] for row in some), median(row["sliced"] for row in some)
        assert f"| {label} | velocity | 3 | 0 | {largest:.2f} | {sliced:.3f} | " in page


def test_the_page_on_the_trilemma_has_its_tables() -> None:
    page = (ROOT / "docs" / "trilemma.md").read_text().splitlines()
    rows = [line for line in (RESULTS / "trilemma.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 14 and [row for row in rows if row not in page] == []


def test_the_page_on_latents_has_the_terms_of_the_loss() -> None:
    page = (ROOT / "docs" / "latent.md").read_text().splitlines()
    rows = [line for line in (RESULTS / "autoencoders.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) >= 5 and [row for row in rows if row not in page] == []


def test_the_page_on_few_steps_has_the_students() -> None:
    page = (ROOT / "docs" / "few-steps.md").read_text()
    for row in json.loads((RESULTS / "students.json").read_text())["rows"]:
        if row["nfe"] == 4 or row["method"] == "consistency":
            name = f"`{row['method']}`" if row["method"] in ("ddim", "pf-ode") else row["method"].replace("-", " ")
            assert f"| {row['law']} | {name} | {row['nfe']} | {row['rms']:.3f} | {row['sliced']:.3f} |" in page
    for row in json.loads((RESULTS / "denoising_gan.json").read_text())["rows"]:
        assert f"| {row['modes']} | {row['near']:.2f} | {row['sliced']:.3f} |" in page
