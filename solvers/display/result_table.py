"""A table of results: the text that people read, and the values that programs read.

Each row has its cells as text, rounded to the digits that the figures deserve, and a record of its values at full
precision. Text, HTML and LaTeX are made from the cells; CSV, pandas and JSON from the records.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solvers.errors import InputError, MissingPackageError

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class ResultTable:
    """A table of results, as text, CSV, LaTeX or HTML.

    Args:
        heads: the headings.
        rows: the cells as text, as many as there are headings.
        records: of each row its values by name; the names of the first are the columns of the CSV.
        title: what the table shows.
        notes: remarks below it.

    Raises:
        ValueError: a row with another number of cells than headings, or another number of records than rows.

    >>> table = ResultTable(("solver", "error"), (("ddim", "0.12"),), ({"solver": "ddim", "error": 0.1234},))
    >>> print(table)
    solver  error
    ddim     0.12
    >>> print(table.to_csv(), end="")
    solver,error
    ddim,0.1234
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, Any], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.heads) for row in self.rows) or len(self.records) != len(self.rows):
            raise InputError(
                f"a table of {len(self.heads)} columns and {len(self.records)} records has rows of "
                f"{[len(row) for row in self.rows]} cells"
            )

    @classmethod
    def of_facts(cls, facts: Mapping[str, tuple[str, Any]], title: str = "") -> ResultTable:
        """A table of facts, each with its text and its value, in two columns.

        >>> print(ResultTable.of_facts({"NFE": ("20 to 22", [20, 22])}))
        fact  value
        NFE   20 to 22
        """
        rows = tuple((name, text) for name, (text, _) in facts.items())
        records = tuple({"fact": name, "value": value} for name, (_, value) in facts.items())
        return cls(("fact", "value"), rows, records, title)

    def numeric(self) -> tuple[bool, ...]:
        """Of each column whether all its cells are numbers, with a standard error perhaps, or empty."""
        pattern = re.compile(rf"({_NUMBER}( \+- {_NUMBER})?)?")
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.heads)
        return tuple(all(pattern.fullmatch(cell) for cell in column) for column in columns)

    def __str__(self) -> str:
        """The table as text, numbers to the right."""
        right = self.numeric()
        lines = [self.heads, *self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.heads))]
        text = [
            "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*filter(None, [self.title]), *text, *self.notes])

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        return self.to_html()

    def to_html(self) -> str:
        """The table as HTML; every text is escaped.

        >>> ResultTable(("<b>",), (("1",),), ({},)).to_html()
        '<table><thead><tr><th>&lt;b&gt;</th></tr></thead><tbody><tr><td align="right">1</td></tr></tbody></table>'
        """
        aligned = [' align="right"' if right else "" for right in self.numeric()]
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = "".join(f"<th>{html.escape(head)}</th>" for head in self.heads)
        body = "".join(
            "<tr>"
            + "".join(f"<td{align}>{html.escape(cell)}</td>" for cell, align in zip(row, aligned, strict=True))
            + "</tr>"
            for row in self.rows
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def csv_lines(self) -> tuple[str, ...]:
        """The names and the records of ``to_csv``, each with its line end."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        lines: list[list[Any]] = [names, *([record.get(name) for name in names] for record in self.records)]
        return tuple(map(_csv_line, lines))

    def to_csv(self) -> str:
        """The records as CSV, with a line of names."""
        return "".join(self.csv_lines())

    def to_json(self) -> str:
        """The records as JSON."""
        return json.dumps([dict(record) for record in self.records], indent=2) + "\n"

    def latex_rows(self) -> tuple[str, ...]:
        """The rows of ``to_latex``, each with its line end."""
        return tuple(_latex_row(row) for row in self.rows)

    def to_latex(self) -> str:
        r"""The table as LaTeX, for the package booktabs.

        >>> table = ResultTable(("solver", "FD"), (("dpm++2m_sde", "0.31 +- 0.12"),), ({},))
        >>> print(table.to_latex(), end="")
        \begin{tabular}{lr}
        \toprule
        solver & FD \\
        \midrule
        dpm++2m\_sde & $0.31 \pm 0.12$ \\
        \bottomrule
        \end{tabular}
        """
        columns = "".join("r" if right else "l" for right in self.numeric())
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(self.heads), r"\midrule"]
        return "\n".join([*lines, *self.latex_rows(), r"\bottomrule", r"\end{tabular}", ""])

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError("to_pandas() needs pandas: pip install pandas; to_csv() needs nothing") from None
        return pandas.DataFrame([dict(record) for record in self.records])


def _csv_line(values: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex, cells)) + r" \\"


def latex(text: str) -> str:
    r"""Text as LaTeX: special characters escaped, numbers with an exponent or a standard error as formulas.

    >>> print(latex("a_b 5%"), latex("1.2e-05"), latex("3 +- 1"))
    a\_b 5\% $1.2 \times 10^{-5}$ $3 \pm 1$
    """
    if re.fullmatch(rf"{_NUMBER}( \+- {_NUMBER})?", text) and ("e" in text or "+-" in text):
        formula = re.sub(r"e([+-]?\d+)", lambda power: rf" \times 10^{{{int(power[1])}}}", text)
        return f"${formula.replace('+-', chr(92) + 'pm')}$"
    return "".join(_LATEX.get(character, character) for character in text)
