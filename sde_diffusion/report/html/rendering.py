"""A page as one HTML file that opens from disk: no server, no network, scripts and data inside.

Jinja2 escapes every text. The data of the scripts is JSON in which no character can end its element. A content
security policy admits the scripts of this file by their hashes and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sde_diffusion.files.writing import write_file
from sde_diffusion.report.html.encoding import gallery_data
from sde_diffusion.report.html.page import Page

PLOTLY = "plotly-basic.min.js"
SCRIPTS = ("core.js", "paint.js", "gallery.js", "detail.js", "charts.js", "table.js", "main.js")


def write_page(path: Path, page: Page) -> None:
    """Write a report to a file, whole or not at all.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    write_file(path, rendered(page).encode())


def rendered(page: Page) -> str:
    """The text of the HTML file of a report."""
    scripts = [_asset(PLOTLY), "\n".join(_asset(name) for name in SCRIPTS)]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            page=page,
            policy=policy,
            style=Markup(_asset("style.css")),
            scripts=[Markup(script) for script in scripts],
            data=Markup(json_for_html(data_of(page))),
            numeric=page.table.numeric(),
            provenance=json.dumps(page.provenance, indent=2, default=str),
        )
    )


def data_of(page: Page) -> dict[str, Any]:
    """The data that the scripts of a page draw, as JSON can hold it."""
    table = page.table
    latex = table.to_latex().split("\n")
    names, *lines = table.csv_lines()
    return {
        "solvers": page.solvers,
        "gallery": None if page.gallery is None else gallery_data(page.gallery),
        "charts": [
            {
                "title": chart.title,
                "x": chart.x_title,
                "y": chart.y_title,
                "curves": [{name: _finite(value) for name, value in vars(curve).items()} for curve in chart.curves],
                "level": chart.level,
            }
            for chart in page.charts
        ],
        "grids": [vars(grid) for grid in page.grids],
        "table": {
            "csvHead": names,
            "csvRows": lines,
            "latexHead": "\n".join(latex[:4]),
            "latexRows": table.latex_rows(),
            "latexFoot": "\n".join(latex[4 + len(table.rows) :]),
            "sortKeys": [[_key(cell) for cell in row] for row in table.rows],
        },
    }


def json_for_html(value: Any) -> str:
    r"""JSON that no HTML parser takes for markup.

    >>> json_for_html("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    """Numbers of a list that are not finite as None: JSON has no others."""
    if isinstance(value, str) or value is None:
        return value
    return [v if v is not None and math.isfinite(v) else None for v in value]


def _key(cell: str) -> float | str:
    """The sort key of a cell: its number, or its text."""
    try:
        return float(cell.split(" +- ")[0].replace(",", ""))
    except ValueError:
        return cell.lower()


@cache
def _environment() -> Environment:
    loader = PackageLoader("sde_diffusion.report.html", "assets")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _asset(name: str) -> str:
    return resources.files("sde_diffusion.report.html").joinpath("assets", name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
