"""Few-step samplers by the Frechet distance and KID of classifier features, beside their distance to the flow.

    python -m benchmarks.tuned.feature_distance --run benchmarks/networks/mnist.safetensors --data mnist --data-dir DIR
        [--features mnist] [--n 5000] [--nfe 5 8 10 20] [--minutes 1] [--out DIR]

Tuning and the choice of ``pf-ode`` make samples that are near to the endpoints of the model's probability flow. This
asks whether such samples are better: DDIM, UniPC and DPM-Solver++(2M) of diffusers (our own where it is not installed),
``pf-ode``, and solvers tuned by RMS distances and by distances of features, from the same initial noise, against the
test images. The row ``flow`` is the reference solution, whose distance no solver is meant to beat.

The solver tuned on features is judged by the features that it was fitted to, which favours it; its RMS distance and
another extractor (``--features``) show by how much.

Every row is written to ``feature_distance.json`` as soon as it is measured, and rows that the file has are not measured
again. ``feature_distance.md`` has the table, and says where the smaller RMS distance has the larger Frechet distance.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Config, Task, peers
from benchmarks.report import command_line, feature_options
from sde_diffusion import ScoreModel
from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import Extractor, Features, default_features, make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import evaluate
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.tuning import tuned_each
from solvers import Solver, solve

NFE = (5, 8, 10, 20)
PEERS = ("DDIM trailing", "UniPCMultistep-2 bh2 trailing zero", "DPMSolverMultistep++2M midpoint trailing zero")
OWN = ("ddim", "unipc", "dpm++2m")
PAIRED, FLOW_STEPS, BATCH = 64, 48, 250
Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """A model, its initial noise, and the features that samples are judged by."""

    model: ScoreModel
    extractor: Extractor
    reference: FeatureStatistics
    x1: Tensor
    truth: Tensor

    @torch.no_grad()
    def row(self, draw: Draw) -> dict[str, Any]:
        """The Frechet distance and KID of samples with intervals, and the RMS distance of the first to the flow."""
        start = time.process_time()
        parts, near = [], None
        for k, x1 in enumerate(torch.split(self.x1, BATCH)):
            x0 = draw(x1)
            if k == 0:
                near = float(rms(x0[:PAIRED].double() - self.truth).mean())
            parts.append(self.extractor(self.model.to_samples(x0)))
        p = [part.probabilities for part in parts if part.probabilities is not None]
        features = Features(torch.cat([part.features for part in parts]), torch.cat(p) if p else None)
        found = evaluate(features, self.reference, metrics=["frechet", "kid"], progress=False)
        figures = {name: [found[name].value, *found[name].interval] for name in ("frechet", "kid")}
        return {**figures, "rms": near, "n": len(self.x1), "seconds": round(time.process_time() - start, 1)}


def methods(model: ScoreModel, nfe: int) -> dict[str, Draw]:
    """The solvers that are not tuned."""

    def ours(solver: str | Solver) -> Draw:
        return lambda x1: solve(model.sde.probability_flow(model), x1, solver=solver, nfe=nfe).x

    def theirs(config: Config) -> Draw:
        def draw(x1: Tensor) -> Tensor:
            x = config.run(Task(model, x1), nfe)
            assert x is not None
            return x

        return draw

    others = [config for config in peers(("diffusers",))[0] if config.name in PEERS]
    found = {str(config): theirs(config) for config in others} or {name: ours(name) for name in OWN}
    return {**found, "pf-ode": ours("pf-ode")}


def report(content: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = ["# Distance to the flow and distance of features", "", f"    {content['command']}", ""]
    lines += ["Frechet distance and 1000 KID of classifier features against test images, with 95 % intervals,"]
    lines += ["and the RMS distance to the reference solution.", ""]
    for network, rows in content["rows"].items():
        lines += [f"## {network}", "", "| NFE | solver | Frechet | 1000 KID | RMS to the flow | n |"]
        lines += ["| ---: | --- | --- | --- | ---: | ---: |"]
        for key, row in rows.items():
            nfe, name = key.split(" ", 1)
            frechet, kid = _interval(row["frechet"]), _interval([1000 * v for v in row["kid"]])
            lines.append(f"| {nfe} | {name} | {frechet} | {kid} | {row['rms']:.3g} | {row['n']:,} |")
        lines += ["", *_disagreements(rows), ""]
    return "\n".join(lines)


def _interval(figures: list[float]) -> str:
    """A figure with its interval.

    >>> _interval([1.0, 0.5, 2.0])
    '1 (0.5 to 2)'
    """
    return f"{figures[0]:.3g} ({figures[1]:.3g} to {figures[2]:.3g})"


def _disagreements(rows: dict[str, Any]) -> list[str]:
    """Where of two solvers the one nearer to the flow has the larger Frechet distance, intervals apart."""
    found = []
    for (first, a), (second, b) in combinations(rows.items(), 2):
        if first.split(" ")[0] != second.split(" ")[0]:
            continue
        near, far, names = (a, b, (first, second)) if a["rms"] < b["rms"] else (b, a, (second, first))
        if near["frechet"][1] > far["frechet"][2]:
            nfe, one = names[0].split(" ", 1)
            other = names[1].split(" ", 1)[1]
            found.append(f"- {nfe} NFE: `{one}` is nearer to the flow, `{other}` has the smaller Frechet distance.")
    nowhere = "Nowhere is a solver nearer to the flow and worse with intervals apart."
    head = "Nearer to the flow is not better here:" if found else nowhere
    return [head, "", *found] if found else [head]


@torch.no_grad()
def main() -> None:
    """Measure the rows that are missing, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned.feature_distance", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run or a .safetensors file")
    feature_options(parser, 5000, NFE, "runs/feature-distance")
    parser.add_argument("--minutes", type=float, default=1.0, help="CPU time of tuning, for each loss")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.run).eval().requires_grad_(False)
    assert model.shape is not None
    extractor = make_extractor(args.features or default_features(model.shape))
    name = f"{args.run.stem}, features {extractor.name}"
    file = args.out / "feature_distance.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    content["command"] = command_line("benchmarks.tuned.feature_distance")
    rows = content["rows"].setdefault(name, {})
    data = load_data(args.data or extractor.name, args.data_dir, split="test")
    x1 = model.sde.prior((args.n, *model.shape), seeds=range(args.n))
    truth, _ = converged(model, x1[:PAIRED], steps=64, dtype=torch.float32, checked=4)
    judge = Judge(model, extractor, FeatureStatistics.of(data, extractor, "test"), x1, truth)
    args.out.mkdir(parents=True, exist_ok=True)

    def put(key: str, draw: Draw) -> None:
        if key not in rows:
            rows[key] = judge.row(draw)
            print(key, rows[key], flush=True)
        file.write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "feature_distance.md").write_text(report(content))

    for nfe in args.nfe:
        for method, draw in methods(model, nfe).items():
            put(f"{nfe} {method}", draw)
    put(
        f"{FLOW_STEPS} flow",
        lambda x1: converged(model, x1, steps=FLOW_STEPS, dtype=torch.float32, checked=1)[0].float(),
    )
    for loss in ("rmse", "features"):
        missing = [nfe for nfe in args.nfe if f"{nfe} tuned, {loss}" not in rows]
        own: dict[str, Any] = {"loss": loss} | ({"features": extractor} if loss == "features" else {})
        own |= {"minutes": args.minutes, "timer": time.process_time, "progress": False}
        if missing:
            for made in tuned_each(model, missing, **own):
                flow, nfe, table = model.sde.probability_flow(model), made.nfe, made.table
                put(f"{nfe} tuned, {loss}", lambda x1, f=flow, n=nfe, t=table: solve(f, x1, solver=t, nfe=n).x)
    print(report(content))


if __name__ == "__main__":
    main()
