"""Tables and plots of the comparison.

    python -m benchmarks.report REPORT.json [REPORT.json ...] --out benchmarks/results/solvers

merges the reports of several runs; problems of a later file replace those of an earlier file.

The best peer is chosen for every problem and NFE in hindsight, on the reported samples, which favours
the peers. The 95 % interval is for the difference between our mean and the smallest mean of all
peers, including the choice of the best peer
(``sde_diffusion.comparison.simultaneous.against_others``). A solver is first only if the interval
excludes 0 and all sets of samples agree.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar10 import small_classifier
from sde_diffusion.comparison.simultaneous import against_others
from sde_diffusion.data import Data, load_data
from sde_diffusion.evaluation.features import Extractor, default_features, make_extractor

OURS = "sdediff"
DEFAULT = "pf-ode"
TUNED = "tuned"
Line = dict[str, Any]
_FIELDS = ("commands", "references", "missing", "entries")


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean, exp(mean(log)); NaN for no values.

    >>> round(geometric_mean([1.0, 4.0]), 9)
    2.0
    """
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def run_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser of RUN [--json FILE] [--picture FILE], which benchmarks of a trained run share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="file of the figures; a table in Markdown lies beside it")
    parser.add_argument("--picture", type=Path)
    return parser


def feature_options(parser: argparse.ArgumentParser, n: int, nfe: Iterable[int], out: str) -> None:
    """Options of benchmarks that judge samples of a run by features: --data, --features, --n, --nfe, --out.

    ``cifar16`` is the name of CIFAR-10 at 16 x 16 and of a classifier of these images.
    """
    parser.add_argument("--data", help="data set of the images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--features")
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--nfe", nargs="+", type=int, default=list(nfe))
    parser.add_argument("--out", type=Path, default=Path(out))


def own_features(shape: tuple[int, ...]) -> str:
    """The features of samples of this shape: those of a classifier where there is one.

    >>> own_features((3, 16, 16)), own_features((1, 28, 28))
    ('cifar16', 'mnist')
    """
    return small_classifier.NAME if shape == small_classifier.SHAPE else default_features(shape)


def features_of_name(name: str, images: Data) -> Extractor:
    """An extractor by name; ``pca`` has the principal axes of the images."""
    if name == small_classifier.NAME:
        return small_classifier.SmallImages()
    return make_extractor(name, fit=lambda: images.batch(slice(None)))


def features_and_images(asked: argparse.Namespace, shape: tuple[int, ...], split: str) -> tuple[Extractor, Data]:
    """The features and the images of ``feature_options``; by default those for samples of this shape."""
    name = asked.data or own_features(shape)
    if name == small_classifier.NAME:
        images = small_classifier.small_images(asked.data_dir, split)
    else:
        images = load_data(name, asked.data_dir, split=split)
    return features_of_name(asked.features or own_features(shape), images), images


def command_line(module: str) -> str:
    """The command that runs, with DIR for folders of data, samples and results."""
    folders = ("--data-dir", "--samples", "--out")
    words = ["DIR" if before in folders else word for before, word in pairwise(sys.argv)]
    return f"python -m {module} {shlex.join(words)}".rstrip()


def write_results(asked: argparse.Namespace, table: str, **content: Any) -> None:
    """Print a table, and write it and the figures where they are asked for."""
    print(table)
    if asked.json:
        asked.json.write_text(json.dumps({"run": asked.run.name, **content}, indent=1) + "\n")
        asked.json.with_suffix(".md").write_text(table + "\n")


def _stats(line: Line) -> Line:
    errors = np.array(line["errors"])
    return {
        "mean": float(errors.mean()),
        "median": float(np.median(errors)),
        "p90": float(np.quantile(errors, 0.9)),
        "sets": [float(part.mean()) for part in np.array_split(errors, line["sets"])],
        "calls": line["calls"],
    }


def summarise(lines: list[Line]) -> list[Line]:
    """One entry for each problem and NFE: the best peer, and each of our solvers against it."""
    entries = []
    for problem, nfe in sorted({(x["problem"], x["nfe"]) for x in lines}, key=str):
        here = [x for x in lines if (x["problem"], x["nfe"]) == (problem, nfe) and x["errors"]]
        mine = {x["solver"]: x for x in here if x["library"] == OURS}
        theirs = [x for x in here if x["library"] != OURS]
        best = min(theirs, key=lambda x: float(np.mean(x["errors"])), default=None)
        entry: Line = {
            "problem": problem,
            "nfe": nfe,
            "peers": len(theirs),
            "best_peer": None,
            "ours": {},
        }
        if best is not None:
            entry["best_peer"] = {"name": f"{best['library']}: {best['solver']}", **_stats(best)}
        for name, line in mine.items():
            entry["ours"][name] = _stats(line) | (_against(line, best, theirs) if best else {})
        entries.append(entry)
    return sorted(entries, key=lambda e: (e["problem"], e["nfe"]))


def _against(line: Line, peer: Line, peers: list[Line]) -> Line:
    """Our solver against the best peer, with an interval that includes the choice of the peer."""
    a, b = np.array(line["errors"]), np.array(peer["errors"])
    wins = {
        bool(x.mean() < y.mean())
        for x, y in zip(np.array_split(a, line["sets"]), np.array_split(b, line["sets"]), strict=True)
    }
    others = np.array([p["errors"] for p in peers if len(p["errors"]) == len(a)]).T
    low, high = against_others(a, others[:, np.isfinite(others).all(0)])
    tie = len(wins) > 1 or low <= 0 <= high
    return {
        "ratio": float(a.mean() / b.mean()),
        "median_ratio": float(np.median(a) / np.median(b)),
        "difference": [low, high],
        "first": "tie" if tie else "ours" if True in wins else "peer",
    }


def markdown(
    entries: list[Line], references: dict[str, float], missing: dict[str, str], commands: dict[str, str]
) -> str:
    """The report as text."""
    out = ["# Paired error to the reference solution, by evaluations", ""]
    out += [*(f"    {command}" for command in dict.fromkeys(commands.values())), ""]
    out += [f"Not installed, so not compared: {', '.join(missing)}.", ""] if missing else []
    for problem in dict.fromkeys(e["problem"] for e in entries):
        here = [e for e in entries if e["problem"] == problem]
        reported = [s["mean"] for e in here for s in [*e["ours"].values(), e["best_peer"]] if s]
        out += [f"## {problem}", ""]
        reference = references.get(problem, 0.0)
        if reference == 0:
            out += ["Reference: exact.", ""]
        else:
            factor = min(reported) / reference
            note = "" if factor >= 20 else " **Less than 20 times: take more reference steps.**"
            out += [
                f"Reference's own error {reference:.2g}; the smallest error below is {factor:.0f} times that.{note}",
                "",
            ]
        out += [
            f"| NFE | best peer of {max(e['peers'] for e in here)} | its error | {DEFAULT} "
            "| ratio | of medians | difference, 95 % over all peers | first | tuned | ratio |",
            "| ---: | --- | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: |",
        ]
        for e in here:
            peer, own = e["best_peer"], e["ours"].get(DEFAULT)
            if peer is None or own is None:
                continue
            low, high = own["difference"]
            made = e["ours"].get(TUNED)
            out.append(
                f"| {e['nfe']} | {peer['name']} | {peer['mean']:.3g} | {own['mean']:.3g} "
                f"| {own['ratio']:.2f} | {own['median_ratio']:.2f} | {low:+.2g} to {high:+.2g} "
                f"| {own['first']} | " + (f"{made['mean']:.3g} | {made['ratio']:.2f} |" if made else "| |")
            )
        names = list(dict.fromkeys(n for e in here for n in e["ours"]))
        out += ["", "All of ours, mean error:", ""]
        out += [
            "| solver | " + " | ".join(str(e["nfe"]) for e in here) + " |",
            "| --- |" + " ---: |" * len(here),
        ]
        for name in names:
            cells = [f"{e['ours'][name]['mean']:.3g}" if name in e["ours"] else "" for e in here]
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out.append("")
    for name in (DEFAULT, TUNED):
        for group, problems in _groups(commands):
            ratios = [
                e["ours"][name]["ratio"]
                for e in entries
                if e["problem"] in problems and e["best_peer"] and name in e["ours"]
            ]
            if ratios:
                out += [
                    f"Ratio of {name} to the best peer, {group}, {len(ratios)} cells: "
                    f"geometric mean {geometric_mean(ratios):.2f}, largest {max(ratios):.2f}.",
                    "",
                ]
    return "\n".join(out)


def _groups(commands: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The problems of every command, and all problems together if there are several commands."""
    apart = [
        (", ".join(names), names)
        for names in ([p for p in commands if commands[p] == one] for one in dict.fromkeys(commands.values()))
    ]
    return [*apart, ("all", list(commands))] if len(apart) > 1 else apart


def plot(entries: list[Line], problem: str, path: Path) -> None:
    """Error against evaluations, log-log: the best peer at each NFE, and our solvers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    here = [e for e in entries if e["problem"] == problem]
    figure, axes = plt.subplots(figsize=(7.6, 4.8))
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    for name in dict.fromkeys(n for e in here for n in e["ours"]):
        points = [(e["nfe"], e["ours"][name]["mean"]) for e in here if name in e["ours"]]
        bold = name in (DEFAULT, TUNED)
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            lw=2.5 if bold else 0.9,
            marker="o" if bold else None,
            zorder=2 + bold,
        )
    best = [(e["nfe"], e["best_peer"]["mean"]) for e in here if e["best_peer"]]
    if best:
        axes.plot(*zip(*best, strict=True), "k--s", lw=2, label="best peer", zorder=4)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="model evaluations",
        ylabel="paired error (RMS)",
        title=problem,
    )
    ticks = [e["nfe"] for e in here]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_report(
    lines: list[Line], references: dict[str, float], out: Path, missing: dict[str, str], command: str = ""
) -> list[Line]:
    """Write report.md, report.json and a plot for every problem."""
    entries = summarise(lines)
    commands = dict.fromkeys(dict.fromkeys(e["problem"] for e in entries), command)
    report = {"commands": commands, "references": references, "missing": missing, "entries": entries}
    _write(report, out / "report")
    for problem in commands:
        plot(entries, problem, out / f"{problem}.png")
    return entries


def merged(reports: Iterable[Line]) -> Line:
    """Merge several reports; a later report replaces the problems of an earlier one."""
    out: Line = {"commands": {}, "references": {}, "missing": {}, "entries": []}
    for report in reports:
        out["entries"] = [e for e in out["entries"] if e["problem"] not in report["commands"]] + report["entries"]
        for name in ("commands", "references", "missing"):
            out[name] |= report[name]
    return out


def _write(report: Line, out: Path) -> None:
    """Write the report as JSON and as text."""
    text = markdown(report["entries"], report["references"], report["missing"], report["commands"])
    out.with_name(f"{out.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_name(f"{out.name}.md").write_text(text)


def _read(path: Path) -> Line:
    """Read a report.

    Raises:
        ValueError: the file does not exist or is not a report.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a report ({error})") from None
    lacks = [name for name in _FIELDS if not isinstance(report, dict) or name not in report]
    if lacks:
        raise ValueError(f"{path} is not a report: it lacks {', '.join(lacks)}")
    return report


def main(argv: list[str] | None = None) -> None:
    """Merge reports."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="report.json of a run or of this command")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args(argv)
    try:
        report = merged([_read(path) for path in args.reports])
    except ValueError as error:
        parser.error(f"{error}; give the report.json that python -m benchmarks.solvers wrote")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    _write(report, args.out)


if __name__ == "__main__":
    main()
