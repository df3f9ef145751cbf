"""Stochastic solvers by the Frechet distance and KID of classifier features, with intervals.

    python -m benchmarks.stochastic [--run RUN] [--data digits --data-dir DIR] [--n 1000] [--nfe 10 20 50 100]
        [--solvers sde dpm++2m-sde sa er-sde restart pf-ode] [--out DIR]

Samples of all solvers have the same seeds, so that their initial noise is the same. Clamped to [-1, 1] they are
compared with the training images, whose law the network has learned. ``pf-ode``, which draws no noise, stands beside
them.

Every row is written to ``stochastic.json`` as soon as it is measured, and rows that the file has are not measured
again. ``stochastic.md`` has the tables, and says where another solver is better than ``sde`` with intervals apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import command_line, feature_options, features_and_images
from sde_diffusion import ScoreModel
from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import evaluate, features_of
from sde_diffusion.sampling.sampler import sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED

OURS = "sde"
SOLVERS = (OURS, "dpm++2m-sde", "sa", "er-sde", "restart", "pf-ode")
NFE = (10, 20, 50, 100)
FIGURES = (("frechet", "Frechet", 1), ("kid", "1000 KID", 1000))


@torch.no_grad()
def row(
    model: ScoreModel, extractor: Extractor, reference: FeatureStatistics, solver: str, nfe: int, n: int
) -> dict[str, Any]:
    """The figures of one solver at one NFE, each with its 95 % interval."""
    start = time.process_time()
    settings = SamplingSettings(solver, nfe, batch_size=250)
    parts, used = [], 0
    for part in sample_batches(model, n, settings):
        parts.append(part.x.clamp(-1, 1))
        used = max(used, int(part.nfe.max()))
    features = features_of(parts, extractor)
    found = evaluate(features, reference, metrics=[name for name, *_ in FIGURES], progress=False)
    figures = {name: [found[name].value, *found[name].interval] for name, *_ in FIGURES}
    return {**figures, "n": n, "used": used, "seconds": round(time.process_time() - start, 1)}


def report(content: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = ["# Stochastic solvers", "", *(f"    {command}" for command in content["commands"].values()), ""]
    lines += ["Frechet distance and 1000 KID of classifier features against the training images, with 95 %"]
    lines += ["intervals; the samples of all solvers have the same seeds.", ""]
    for network, rows in content["rows"].items():
        budgets = sorted({int(key.split(" ")[0]) for key in rows})
        names = list(dict.fromkeys(key.split(" ", 1)[1] for key in rows))
        n = next(iter(rows.values()))["n"]
        for figure, title, unit in FIGURES:
            lines += [f"## {network}: {title}, {n:,} samples", ""]
            lines += ["| solver | " + " | ".join(map(str, budgets)) + " |", "| --- |" + " --- |" * len(budgets)]
            for name in names:
                cells = [_cell(rows.get(f"{b} {name}"), figure, unit) for b in budgets]
                lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
            lines.append("")
        lines += [*_losses(rows), ""]
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, figure: str, unit: float) -> str:
    """A figure with its interval.

    >>> _cell({"kid": [0.001, 0.0005, 0.002]}, "kid", 1000)
    '1 (0.5 to 2)'
    """
    return "" if found is None else "{:.3g} ({:.3g} to {:.3g})".format(*(unit * v for v in found[figure]))


def _losses(rows: dict[str, Any]) -> list[str]:
    """Where a stochastic solver has a smaller figure than ``sde``, and whether the intervals are apart."""
    found = []
    for key, other in rows.items():
        nfe, name = key.split(" ", 1)
        own = rows.get(f"{nfe} {OURS}")
        if own is None or name in (OURS, "pf-ode"):
            continue
        less = [title for figure, title, _ in FIGURES if other[figure][0] < own[figure][0]]
        apart = [title for figure, title, _ in FIGURES if other[figure][2] < own[figure][1]]
        if less:
            end = f", intervals apart for {' and '.join(apart)}" if apart else ""
            found.append(f"- {nfe} NFE: `{name}` is below `{OURS}` by {' and '.join(less)}{end}.")
    return found or [f"Nowhere is another stochastic solver below `{OURS}`."]


def main() -> None:
    """Measure the rows that are missing, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.stochastic", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=BUNDLED, help="a run or a .safetensors file")
    feature_options(parser, 1000, NFE, "runs/stochastic")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.run).eval().requires_grad_(False)
    assert model.shape is not None
    extractor, data = features_and_images(args, model.shape, "train")
    reference = FeatureStatistics.of(data, extractor)
    file = args.out / "stochastic.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"commands": {}, "rows": {}}
    name = f"{args.run.stem}, features {extractor.name}"
    content["commands"][name] = command_line("benchmarks.stochastic")
    rows = content["rows"].setdefault(name, {})
    args.out.mkdir(parents=True, exist_ok=True)
    for nfe in args.nfe:
        for solver in args.solvers:
            key = f"{nfe} {solver}"
            if key not in rows:
                rows[key] = row(model, extractor, reference, solver, nfe, args.n)
                print(key, rows[key], flush=True)
            file.write_text(json.dumps(content, indent=1) + "\n")
            (args.out / "stochastic.md").write_text(report(content))
    print(report(content))


if __name__ == "__main__":
    main()
