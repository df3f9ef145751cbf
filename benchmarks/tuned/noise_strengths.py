"""Noise of given strengths after the steps of one table, by the Frechet distance of features to the training images.

    python -m benchmarks.tuned.noise_strengths --run benchmarks/networks/cifar16.safetensors --data cifar16
        --data-dir DIR [--nfe 10] [--n 800] [--json FILE]

The table is that of the exponential Adams method of order 2 with its corrector, on the times of ``pf-ode``. Strengths
are the same in all steps or in a third of them, with D^ from two predictions or from the last one
(``solvers.fitted.noisy_table``). Beside them stand ``pf-ode`` and ``sde``. All start from the same initial noise; the
last column is the difference to no noise with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import command_line, feature_options, features_and_images
from sde_diffusion.evaluation.metrics import Moments, frechet_difference, unbiased_frechet_distance
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.tuning.fit import TableFit
from sde_diffusion.tuning.stochastic.law_distance import GIVEN, LawDistance, features_of_samples
from sde_diffusion.tuning.stochastic.strengths import Drawn, Strengths
from solvers import plan, solve
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.compile import compile_table

REAL, BATCH = 20_000, 100


def tried(n: int) -> dict[str, tuple[Strengths, int]]:
    """Strengths of n steps by name, and the order of D^.

    >>> tried(3)["0.8 in the last third"]
    ((0.0, 0.0, 0.8), 2)
    """
    found = {f"{eta:g} in all steps": ((eta,) * n, 2) for eta in (0.3, 0.6, 1.0)}
    found["0.6 in all steps, the last D alone"] = ((0.6,) * n, 1)
    for k, name in enumerate(("first", "middle", "last")):
        inside = range(round(k * n / 3), round((k + 1) * n / 3))
        found[f"0.8 in the {name} third"] = (tuple(0.8 if i in inside else 0.0 for i in range(n)), 2)
    return found


@torch.no_grad()
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned.noise_strengths", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run or a .safetensors file")
    feature_options(parser, 800, (10,), "runs/noise-strengths")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.run).eval().requires_grad_(False)
    assert model.shape is not None
    extractor, data = features_and_images(args, model.shape, "train")
    real = torch.cat(
        [features_of_samples(extractor, data.batch(slice(k, k + 500))) for k in range(0, min(REAL, len(data)), 500)]
    )
    law, moments = LawDistance(extractor, model.to_samples, real, GIVEN), Moments.of(real)
    x1 = model.sde.prior((args.n, *model.shape), seeds=range(args.n))
    fit = TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, x1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for nfe in args.nfe:
        process = model.sde.probability_flow(model)
        times = plan(process, model.shape, "pf-ode", nfe=nfe)[1]
        table = compile_table(ExponentialAdams(2, variable="time", corrector=True), model.sde, nfe, times)
        samples = {order: Drawn(table, fit, args.n, model.shape, law, 0, 0, order) for order in (1, 2)}
        none = samples[2].of([(0.0,) * (nfe - 1)], args.n)[0]
        found = {"no noise": none}
        names = tried(nfe - 1)
        for order in (1, 2):
            wanted = [name for name, (_, own) in names.items() if own == order]
            features = samples[order].of([names[name][0] for name in wanted], args.n)
            found |= dict(zip(wanted, features, strict=True))
        found["pf-ode"] = samples[2].of_solver(plan(process, model.shape, "pf-ode", nfe=nfe)[0], args.n)
        for eta in (0.5, 1.0):
            noisy = model.sde.reverse(model, eta)
            seeds = torch.arange(args.n).split(BATCH)
            starts = zip(x1.split(BATCH), seeds, strict=True)
            parts = [solve(noisy, x, solver="sde", nfe=nfe, seeds=own).x for x, own in starts]
            found[f"sde, eta {eta:g}"] = torch.cat([law.of(part) for part in parts])
        print(f"| {nfe} evaluations | Frechet | difference to no noise |\n| --- | ---: | --- |")
        for name, own in found.items():
            value, gap = unbiased_frechet_distance(own, moments), frechet_difference(own, none, moments)
            low, high = gap.interval
            rows[f"{nfe} {name}"] = {"frechet": [value.value, *value.interval], "difference": [gap.value, low, high]}
            print(f"| {name} | {value.value:.2f} | {gap.value:.2f} ({low:.2f} to {high:.2f}) |", flush=True)
    content = {"command": command_line("benchmarks.tuned.noise_strengths"), "n": args.n, "rows": rows}
    (args.out / f"{args.run.stem}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
