"""The stored tables are those of the stated origin, as far as the repository can repeat it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.design import check, origin
from benchmarks.design.training_problems import exact_problems
from solvers.fitted.coefficients import read_coefficients

QUIET = Console(quiet=True)


def changed(path: Path, folder: Path, edit) -> Path:
    content = json.loads(path.read_text())
    edit(content)
    (folder / path.name).write_text(json.dumps(content))
    return folder / path.name


def test_exact_models_have_the_stored_hashes(tmp_path: Path) -> None:
    assert list(check.hashes(origin.TABLES, large=False)) == []
    assert list(check.hashes(origin.START, large=False)) == []
    other = changed(origin.TABLES, tmp_path, lambda c: c["training_set"][2].update(sha256="0" * 64))
    assert len(list(check.hashes(other, large=False))) == 1


@pytest.mark.slow
def test_large_exact_models_have_the_stored_hashes() -> None:
    assert list(check.hashes(origin.LARGE_TABLES, large=True)) == []


def test_a_hash_follows_the_model() -> None:
    models = origin.exact_models()
    assert len({origin.hash_of(model) for model in models.values()}) == len(models)


def test_stored_tables_have_the_stored_errors(tmp_path: Path) -> None:
    """On one model; a coefficient that changes by a hundredth is seen."""
    content = read_coefficients(origin.TABLES)
    problems = exact_problems(names=["spectrum, line"])
    for entry in content["tables"]:
        stored = content["held_out_error"]["by_steps"][str(len(entry["rows"]))]["spectrum, line"]
        assert origin.held_out_errors(entry, problems)["spectrum, line"] == pytest.approx(stored, rel=check.REPEATED)
    entry["rows"][5] = [[decay * 1.01, weights] for decay, weights in entry["rows"][5]]
    assert origin.held_out_errors(entry, problems)["spectrum, line"] != pytest.approx(stored, rel=check.REPEATED)


@pytest.mark.slow
def test_a_table_of_three_steps_is_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, problems = check.refit(3, QUIET)
    monkeypatch.setattr(check, "refit", lambda steps, console: (entry, problems))
    assert list(check.refitted(3, QUIET)) == []
    stored = changed(check.STORED, tmp_path, lambda c: c["tables"][0]["rho"].__setitem__(0, 3.0))
    assert "noise level" in next(iter(check.refitted(3, QUIET, stored)))
    stored = changed(check.STORED, tmp_path, lambda c: c["tables"][0]["rows"][1][0].__setitem__(0, 0.5))
    assert "coefficients of row 1 differ" in next(iter(check.refitted(3, QUIET, stored)))


def test_a_table_is_added_with_its_origin(tmp_path: Path) -> None:
    """The other tables of the file keep theirs."""
    path = tmp_path / "check.json"
    path.write_bytes(check.STORED.read_bytes())
    problems = exact_problems(names=["plane", "spectrum, line"], n=4)
    [entry] = [one for one in read_coefficients(path)["tables"] if len(one["rows"]) == 5]
    before = read_coefficients(path)
    origin.add(path, entry, problems, check.EXPERTS, (), "python -m benchmarks.design --nfe 5")
    after = read_coefficients(path)
    assert after["tables"] == before["tables"]
    assert [one["steps"] for one in after["origin"]] == [[3], [5]]
    assert after["origin"][1]["command"] == "python -m benchmarks.design --nfe 5" and after["origin"][1]["commit"]
    assert after["held_out_error"]["by_steps"]["3"] == before["held_out_error"]["by_steps"]["3"]
    assert set(after["held_out_error"]["by_steps"]["5"]) == {"plane", "spectrum, line"}
