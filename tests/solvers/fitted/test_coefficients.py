"""Files of fitted coefficients are complete, say where their tables come from, and are refused where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solvers.errors import InputError
from solvers.fitted import coefficients
from solvers.fitted.coefficients import problems, read_coefficients

FILES = [Path(coefficients.__file__).with_name(name) for name in ("pf_ode.json", "pf_ode_large.json")]
HEX = set("0123456789abcdef")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_says_where_its_tables_come_from(path: Path) -> None:
    content = read_coefficients(path)
    for one in content["origin"]:
        assert one["command"].startswith("python -m benchmarks.design")
        assert len(one["commit"]) == 40 and set(one["commit"]) <= HEX
    steps = {len(entry["rows"]) for entry in content["tables"]}
    assert {int(n) for n in content["held_out_error"]["by_steps"]} == steps
    names = {one["name"] for one in content["training_set"] if one["model"] == "exact"}
    assert all(errors.keys() == names for errors in content["held_out_error"]["by_steps"].values())
    for one in content["training_set"]:
        known = one["sha256"]
        assert (len(known) == 64 and set(known) <= HEX) if known else "not recorded" in one["remark"]
    assert {one["expert"] for one in content["training_set"]} == set(content["experts"])


def table(content: dict[str, Any], steps: int = 8) -> dict[str, Any]:
    return next(entry for entry in content["tables"] if len(entry["rows"]) == steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "format is 2"),
        (lambda c: c.pop("origin"), "keys differ from those of format 1: origin"),
        (lambda c: c.update(author="me"), "author"),
        (lambda c: c["experts"].pop(), "unknown experts ['cloud']"),
        (lambda c: c["features"].reverse(), "this version computes"),
        (lambda c: c["origin"][0].pop("commit"), "each needs a command and a commit"),
        (lambda c: c["tables"].pop(), "origin has the steps"),
        (lambda c: c["tables"].append(c["tables"][0]), "two tables have the same number of steps"),
        (lambda c: table(c)["rho"].reverse(), "table of 8 steps: rho must fall"),
        (lambda c: table(c)["rho"].pop(), "8 rows need 7 rho and 8 gates; got 6 and 8"),
        (lambda c: table(c)["rows"][3].pop(), "row 3 has 5 experts, expected 6"),
        (lambda c: table(c)["rows"][2][0][1].append(0.0), "row 2 must have a decay and 1 to 3 weights"),
        (lambda c: table(c)["rows"][2][0].__setitem__(0, float("nan")), "all finite"),
        (lambda c: table(c)["gates"][4][0].pop(), "gate 4: expected 6 features and 6 experts"),
        (lambda c: table(c)["gates"][4][1].__setitem__(0, 0.0), "widths above 0"),
        (lambda c: table(c)["gates"][4].pop(), "expected centre, width, slopes and offset; got 3 lists"),
        (lambda c: table(c).pop("rows"), "malformed"),
        (lambda c: table(c).update(rows=7), "malformed"),
    ],
)
def test_a_wrong_part_is_named(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    content = json.loads(FILES[0].read_text())
    change(content)
    path = tmp_path / "pf_ode.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_coefficients(path)
    assert message in str(caught.value) and "pf_ode.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "7", '{"tables": []}', "{"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read_coefficients(tmp_path / "x.json")


def test_the_files_in_use_have_no_problem() -> None:
    assert [what for path in FILES for what in problems(json.loads(path.read_text()))] == []
