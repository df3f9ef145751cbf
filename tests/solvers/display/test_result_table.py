"""A table says the same as text, HTML, CSV, LaTeX and in pandas, and no text of a user becomes markup."""

from __future__ import annotations

import csv
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from solvers.display import Displayed, ResultTable

TABLE = ResultTable(
    ("solver", "error", "Frechet", "note"),
    (
        ("<script>alert(1)</script>", "1.2e-05", "0.31 +- 0.12", "50 % & more"),
        ("dpm++2m_sde", "0.5", "", "a, \"b\""),
    ),
    (
        {"solver": "<script>alert(1)</script>", "error": 1.23456789e-5, "frechet": 0.3123, "note": "50 % & more"},
        {"solver": "dpm++2m_sde", "error": 0.5, "frechet": None, "note": 'a, "b"'},
    ),
)  # fmt: skip


class Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1] += data


def test_html_holds_the_texts_and_no_tag_of_theirs() -> None:
    read = Cells(TABLE.to_html())
    assert read.found == [*TABLE.heads, *TABLE.rows[0], *TABLE.rows[1]]
    assert read.tags == {"table", "thead", "tbody", "tr", "th", "td"}


def test_csv_and_json_have_every_digit() -> None:
    read = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert float(read[0]["error"]) == 1.23456789e-5 and read[1]["frechet"] == ""
    assert read[1]["note"] == 'a, "b"'
    assert json.loads(TABLE.to_json()) == [dict(record) for record in TABLE.records]


def test_latex_escapes_words_and_sets_numbers_as_formulas() -> None:
    lines = TABLE.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrl}"
    assert lines[4] == (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} & $1.2 \times 10^{-5}$ & "
        r"$0.31 \pm 0.12$ & 50 \% \& more \\"
    )
    assert lines[5].startswith(r"dpm++2m\_sde & 0.5 &  &")


def test_numbers_stand_to_the_right() -> None:
    assert TABLE.numeric() == (False, True, True, False)
    assert str(TABLE).splitlines()[2].startswith("dpm++2m_sde                    0.5")


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 columns and 1 records has rows of \[1\] cells"):
        ResultTable(("a", "b"), (("1",),), ({},))


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        TABLE.to_pandas()


def test_pandas_has_the_records() -> None:
    pytest.importorskip("pandas")
    assert TABLE.to_pandas()["error"].tolist() == [1.23456789e-5, 0.5]


class Result(Displayed):
    def table(self) -> ResultTable:
        return TABLE


def test_the_suffix_says_what_is_saved(tmp_path: Path) -> None:
    for suffix, text in ((".csv", TABLE.to_csv()), (".tex", TABLE.to_latex()), (".json", TABLE.to_json())):
        assert Result().save(tmp_path / f"a{suffix}").read_text() == text
    assert Result().to_csv(tmp_path / "b.csv") == (tmp_path / "b.csv").read_text()
    with pytest.raises(ValueError, match=r"\.csv, \.tex, \.html, \.json, \.png, \.svg, \.pdf.*'a\.xls'"):
        Result().save(tmp_path / "a.xls")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.tex", "a.json", "b.csv"}  # nothing is left behind
