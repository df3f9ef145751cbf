"""Table, figure and HTML page of the rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.report.html import Chart, Curve, Page, write_page
from sde_diffusion.report.pictures import save_figure
from solvers.display.result_table import ResultTable

Row = dict[str, Any]
COMMAND = "python -m benchmarks.trilemma --data-dir DATA --seeds 3"
HEADS = ("model", "NFE", "Frechet", "KID", "precision", "recall", "samples/s", "bits/dim", "training, s")
FAMILY_HEADS = ("model", "training minimises", "Frechet of seeds", "likelihood", "reconstruction", "bottleneck")
SHAPE = (28, 28)
STUDENT = "student"
COLOURS = {"diffusion": "C0", STUDENT: "C2"}


def pair(found: list[float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """A figure with its standard error."""
    return "" if found is None else f"{scale * found[0]:.{digits}f} +- {scale * found[1]:.{digits}f}"


def label(name: str, row: Row) -> str:
    """The name of a row in tables and figures."""
    return row.get("solver") or str(row["family"]) if "frechet" in row else name


def cells(name: str, row: Row) -> tuple[str, ...]:
    """The row of the table of figures."""
    took = row.get("training", row.get("tuning"))
    return (
        label(name, row), row["nfe"], pair(row["frechet"]), pair(row["kid"], 3), pair(row["precision"]),
        pair(row["recall"]), f"{row['rate']:,.0f}" if row["rate"] >= 10 else f"{row['rate']:.1f}",
        pair(row.get("bits")), "" if took is None else f"{took:.0f}",
    )  # fmt: skip


def first_seeds(rows: dict[str, Row]) -> dict[str, Row]:
    """The rows with samples, of families those of seed 0."""
    return {name: row for name, row in rows.items() if "frechet" in row and row.get("seed", 0) == 0}


def by_family(rows: dict[str, Row]) -> list[tuple[str, ...]]:
    """The table of families: what they are and what was measured of it."""
    out = []
    for family in dict.fromkeys(str(row["family"]) for row in rows.values() if row["family"] != STUDENT):
        mine = [row for row in rows.values() if row["family"] == family]
        trained = [row for row in mine if "objective" in row]
        spread = [row["frechet"][0] for row in trained]
        bits = next((row["bits"] for row in mine if "bits" in row), None)
        error = next((row["reconstruction"] for row in mine if "reconstruction" in row), None)
        kind = trained[0]["likelihood"] if trained else "exact, by the flow"
        size = trained[0]["bottleneck"] if trained else "none: 784 values"
        if codes := next((row["codes"] for row in mine if "codes" in row), None):
            size += f", perplexity {codes['perplexity']:.0f} of {codes['size']}"
        over = (
            f"{statistics.mean(spread):.1f}, {min(spread):.1f} to {max(spread):.1f}" if len(spread) > 1 else "one seed"
        )
        out.append((
            family, trained[0]["objective"] if trained else "denoising", over,
            kind if bits is None else f"{kind}, {pair(bits)} bits/dim", "none" if error is None else f"RMS {error:.2g}",
            size,
        ))  # fmt: skip
    return out


def markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ("---",) * len(heads), *rows))


def images(row: Row) -> Tensor:
    """The samples that a row holds, (n, 28, 28) from 0 to 255."""
    return torch.tensor([list(bytes.fromhex(image)) for image in row["shown"]]).reshape(-1, *SHAPE)


def by_label(shown: dict[str, Row]) -> dict[str, list[Row]]:
    """The rows of each label, such as those of a solver at several NFE."""
    out: dict[str, list[Row]] = {}
    for name, row in shown.items():
        out.setdefault(label(name, row), []).append(row)
    return out


def plot(path: Path, rows: dict[str, Row]) -> None:
    """Quality against diversity, quality against speed, and samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = first_seeds(rows)
    figure = Figure(figsize=(11, 4 + 0.42 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=[4, 0.42 * len(shown)])
    left, right = top.subplots(1, 2)
    marks = iter("oD^vP*X")
    for text, points in by_label(shown).items():
        stepped = points[0]["family"] in COLOURS
        colour = COLOURS.get(points[0]["family"], "C1")
        style = {"marker": next(marks) if stepped else "s", "color": colour, "capsize": 2, "linewidth": 0.8}
        for axes, x, y in ((left, "recall", "precision"), (right, "rate", "frechet")):
            at = [(row["rate"], 0.0) if x == "rate" else row[x] for row in points]
            value, error = zip(*(row[y] for row in points), strict=True)
            axes.errorbar(
                [v for v, _ in at], value, [1.96 * e for e in error], [1.96 * e for _, e in at], **style,
                label=text if stepped else None,
            )  # fmt: skip
            for (v, _), height, row in zip(at, value, points, strict=True):
                if axes is right or not stepped:
                    note = row["nfe"] if stepped else text
                    axes.annotate(note, (v, height), xytext=(4, 4), textcoords="offset points", fontsize=8)
    left.legend(fontsize=8, title="NFE at the points on the right", title_fontsize=8)
    left.set(xlabel="recall: diversity", ylabel="precision: quality", title="best at the upper right")
    right.set(xlabel="samples a second, one core", ylabel="squared Frechet distance", title="best at the lower right")
    right.set_xscale("log")
    right.set_yscale("log")
    for axes, (name, row) in zip(bottom.subplots(len(shown), 1), shown.items(), strict=True):
        axes.imshow(torch.cat([*images(row)], dim=1).numpy(), cmap="gray", vmin=0, vmax=255, aspect="equal")
        text = f"{label(name, row)}, {row['nfe']} NFE" if row["family"] in COLOURS else label(name, row)
        axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
    save_figure(path, figure, dpi=110)


def html(path: Path, rows: dict[str, Row]) -> None:
    """The page: the table, and distance, precision and recall against the time of a sample."""
    shown = first_seeds(rows)
    curves = by_label(shown)
    charts = []
    for figure, title in (("frechet", "Frechet distance"), ("precision", "Precision"), ("recall", "Recall")):
        lines = []
        for name, points in curves.items():
            line = sorted((1000 / row["rate"], *row[figure]) for row in points)
            low, high = ([v + sign * 1.96 * e for _, v, e in line] for sign in (-1, 1))
            lines.append(Curve(name, [x for x, _, _ in line], [v for _, v, _ in line], low, high))
        charts.append(Chart(f"{title} against the time of a sample", "time of a sample, ms", figure, lines))
    table = ResultTable(
        HEADS,
        tuple(cells(name, row) for name, row in shown.items()),
        tuple({k: v for k, v in row.items() if k != "shown"} for row in shown.values()),
    )
    n = next(iter(shown.values()))["n"]
    write_page(path, Page(
        title="The generative trilemma on MNIST", command=COMMAND, table=table, charts=charts,
        facts={"Data": "MNIST, 28 x 28", "Samples": f"{n:,} a row", "Reference": "10,000 test images, features mnist"},
        notes=["Figures have their standard errors; speed is that of one core."], bars="Bars are 95 % intervals.",
    ))  # fmt: skip


def write(rows: dict[str, Row], out: Path, page: Path | None, image: Path | None) -> None:
    """Write the tables, and the page and the figure of rows with samples."""
    figures = [cells(name, row) for name, row in first_seeds(rows).items()]
    text = f"{markdown(HEADS, figures)}\n\n{markdown(FAMILY_HEADS, by_family(rows))}\n"
    print(text)
    (out / "trilemma.md").write_text(f"# The generative trilemma on MNIST\n\nMade by `{COMMAND}`.\n\n{text}")
    if figures and page is not None:
        html(page, rows)
    if figures and image is not None:
        plot(image, rows)
