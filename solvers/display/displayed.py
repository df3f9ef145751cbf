"""The common base of results: a table in a notebook, and files for a paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from solvers.display.figures import FORMATS, save_figure, write_whole
from solvers.display.result_table import ResultTable
from solvers.errors import InputError

TABLES = (".csv", ".tex", ".html", ".json")


class Displayed:
    """Methods of a result that has a ``table()`` and perhaps a ``plot()``.

    >>> class Two(Displayed):
    ...     def table(self):
    ...         return ResultTable(("n",), (("2",),), ({"n": 2},))
    >>> print(Two().to_csv(), end="")
    n
    2
    """

    def table(self) -> ResultTable:
        """The result as a table."""
        raise NotImplementedError

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The result as a matplotlib figure, which is also written to a .png, .svg or .pdf file if one is named."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The values at full precision as CSV; also written to a file if one is named.

        Raises:
            OSError: the file cannot be written.
        """
        return _written(self.table().to_csv(), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as LaTeX for the package booktabs; also written to a file if one is named.

        Raises:
            OSError: the file cannot be written.
        """
        return _written(self.table().to_latex(), path)

    def to_pandas(self) -> Any:
        """The values at full precision as a pandas DataFrame.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return self.table().to_pandas()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table (.csv, .tex, .html, .json) or the figure (.png, .svg, .pdf), by the name of the file.

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            OSError: the file cannot be written; an existing one is unchanged.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in FORMATS:
            self.plot(path)
            return path
        if suffix not in TABLES:
            known = ", ".join((*TABLES, *FORMATS))
            raise InputError(f"a result is saved as one of {known}, by the name of the file; got '{path.name}'")
        found = self.table()
        text = {".csv": found.to_csv, ".tex": found.to_latex, ".html": found.to_html, ".json": found.to_json}[suffix]()
        write_whole(path, text.encode())
        return path


def finished(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure, written to a file if one is named: the end of every ``plot``."""
    if path is not None:
        save_figure(path, figure)
    return figure


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_whole(Path(path), text.encode())
    return text
