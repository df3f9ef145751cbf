r"""Table 2 of the DDPM paper (Ho et al. 2020) on the bundled digits: the objective and the quality of samples.

    python -m benchmarks.ddpm_table [--updates 600] [--n 1000] [--runs DIR] [--only WORD ...]

A network of 0.09 million parameters is trained with each objective, the same number of updates, seed and data order, on
the process of 100 steps, and 1,000 samples are drawn along all steps.

- mu~, eps, x_0      what the network predicts
- L                  the terms of the variational bound, weighted as they are there (g^2, in continuous time)
- L_simple           the plain error of what the network predicts
- fixed, learned     steps of the variance beta~, or of one that the network learned by the bound, with a gradient
                     that stops at the mean (the L_hybrid of Nichol & Dhariwal 2021; Ho et al. let it pass)

The columns are the Inception score and the Frechet distance to the training digits, both in the bundled classifier of
digits, with 95 % intervals. The JSON file is written after every row, and rows that it has are not computed again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.ddpm_table import LOSSES, OBJECTIVES, PAPER, PREDICTIONS, STEPS, VARIANCES, Objective
from sde_diffusion import FeatureStatistics, ScoreModel, evaluate, load, sample, train
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.training.defaults import default_model

RESULTS = Path(__file__).parent.parent / "results" / "ddpm-table"


def trained(objective: Objective, updates: int, folder: Path) -> ScoreModel:
    """The model of an objective; a run in the folder is continued, or taken as it is."""
    data = load_data("digits", labels=False)
    model = default_model(
        data,
        sde="ddpm",
        predicts=objective.predicts,
        sde_settings={"steps": STEPS},
        network_settings={"channels": 16, "variance": VARIANCES[objective.variance]},
    )
    out = folder / objective.name
    train(
        model, data, out=out, resume=out.exists(), steps=updates, weight=LOSSES[objective.loss], ema=0.995,
        time_sampling="stratified", checkpoint_every=100, sample_every=0, device="cpu",
    )  # fmt: skip
    return load(out)


def measured(model: ScoreModel, n: int) -> dict[str, Any]:
    """Inception score and Frechet distance with their intervals."""
    reference = FeatureStatistics.of(load_data("digits"), make_extractor("digits"))
    x = sample(model, n, solver="ddpm", steps=STEPS, grid="uniform", batch_size=500)
    found = evaluate(x, reference, metrics=["inception-score", "frechet"])
    return {name: {"value": found[name].value, "interval": list(found[name].interval)} for name in found}


def markdown(content: dict[str, Any]) -> str:
    """The table, by falling Inception score, and the order beside that of the paper."""
    rows = sorted(content["rows"].values(), key=lambda row: row["frechet"]["value"])

    def cell(row: dict[str, Any], metric: str) -> str:
        low, high = row[metric]["interval"]
        return f"{row[metric]['value']:.2f} ({low:.2f} to {high:.2f})"

    lines = [
        "# The objectives of DDPM on digits",
        "",
        f"{content['updates']:,} updates and {content['n']:,} samples of {STEPS} steps for each row, in the order of",
        "the Frechet distance; 95 % intervals; features of the bundled classifier of digits.",
        f"`{content['command']}`",
        "",
        "| predicts | loss | variance | Inception score | Frechet distance | paper: IS | paper: FID |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        paper = PAPER.get(f"{row['predicts']}-{row['loss']}-{row['variance']}")
        theirs = "| | |" if paper is None else f"| {paper[0]:.2f} | {paper[1]:.2f} |"
        lines.append(
            f"| {PREDICTIONS[row['predicts']]} | {row['loss']} | {row['variance']} | {cell(row, 'inception-score')} "
            f"| {cell(row, 'frechet')} {theirs}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/ddpm-table"))
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts of the names of rows")
    parser.add_argument("--out", type=Path, default=RESULTS, help="name of the results without ending")
    options = parser.parse_args()
    path = options.out.with_suffix(".json")
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.ddpm_table --updates {options.updates} --n {options.n}",
        "updates": options.updates,
        "n": options.n,
        "rows": {},
    }
    if path.is_file():
        before = json.loads(path.read_text())
        content["rows"] = before["rows"] if before["command"] == content["command"] else {}
    for objective in OBJECTIVES:
        wanted = not options.only or any(word in objective.name for word in options.only)
        if objective.name in content["rows"] or not wanted:
            continue
        row = {"predicts": objective.predicts, "loss": objective.loss, "variance": objective.variance}
        row |= measured(trained(objective, options.updates, options.runs), options.n)
        content["rows"][objective.name] = row
        print(json.dumps(row), flush=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
