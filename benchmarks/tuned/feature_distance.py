"""Few-step samplers by the Frechet distance and KID of classifier features, beside their distance to the flow.

    python -m benchmarks.tuned.feature_distance --run benchmarks/networks/mnist.safetensors --data mnist --data-dir DIR
        [--features mnist] [--n 5000] [--nfe 5 8 10 20] [--minutes 1] [--noise-minutes 4] [--only WORD ...]
        [--samples DIR] [--out DIR]

Tuning and the choice of ``pf-ode`` make samples that are near to the endpoints of the model's probability flow. This
asks whether such samples are better: DDIM, DPM-Solver++(2M) and UniPC of diffusers on "trailing" times, UniPC on
exponential levels too (our own solvers where diffusers is not installed), ``pf-ode``, and solvers tuned by RMS
distances and by distances of features, from the same initial noise, against the test images. The row ``flow`` is the
reference solution, whose distance no solver is meant to beat.

The row "tuned, noise" is a solver that may draw noise (``tune(..., stochastic=True)``), from the same initial noise.
Its strengths are chosen by the same features against the training images, and the test images judge. Where no noise was
taken it is the solver tuned by RMS distances in a part of its time.

The solver tuned on features is judged by the features that it was fitted to, which favours it; its RMS distance and
another extractor (``--features pca``), which judges the same samples, show by how much.

Every row is written to ``feature_distance.json`` as soon as it is measured, and rows that the file has are not measured
again. The samples are kept in ``--samples``: from them come the RMS distances over all samples, where the row ``flow``
is there, and the differences of pairs of solvers. ``feature_distance.md`` has the table, and says where the smaller RMS
distance has the larger Frechet distance.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Config, Task, peers
from benchmarks.report import command_line, feature_options, features_and_images, features_of_name, own_features
from benchmarks.tuned.feature_pairs import paired, sentences
from sde_diffusion import ScoreModel
from sde_diffusion.evaluation.features import Extractor, Features
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import evaluate, features_of
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.tuning import tuned_each
from solvers import Solver, solve

NFE = (5, 8, 10, 20)
PEERS = (
    "DDIM trailing",
    "UniPCMultistep-2 bh2 trailing zero",
    "UniPCMultistep-2 bh2 exponential zero",
    "DPMSolverMultistep++2M midpoint trailing zero",
)
OWN = ("ddim", "unipc", "dpm++2m")
PAIRED, FLOW_STEPS, BATCH, REAL = 64, 48, 50, 20_000
Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """A model, its initial noise, and the features that samples are judged by."""

    model: ScoreModel
    extractor: Extractor
    reference: FeatureStatistics
    x1: Tensor
    truth: Tensor

    def has(self, stored: Path) -> bool:
        """Whether a file has as many samples as there is initial noise."""
        return stored.exists() and len(np.load(stored, mmap_mode="r")) == len(self.x1)

    @torch.no_grad()
    def samples(self, draw: Draw, stored: Path) -> Tensor:
        """The samples in a file, which are drawn where it is missing."""
        if not self.has(stored):
            stored.parent.mkdir(parents=True, exist_ok=True)
            partial = stored.with_suffix(".partial.npy")
            np.save(partial, torch.cat([draw(x1) for x1 in torch.split(self.x1, BATCH)]).numpy())
            partial.replace(stored)
        return torch.from_numpy(np.load(stored))

    def features(self, x: Tensor) -> Features:
        """The features of samples."""
        return features_of((self.model.to_samples(part) for part in torch.split(x, BATCH)), self.extractor)

    def row(self, x: Tensor) -> dict[str, Any]:
        """The Frechet distance and KID of samples with intervals, and the RMS distance of the first to the flow."""
        found = evaluate(self.features(x), self.reference, metrics=["frechet", "kid"], progress=False)
        figures = {name: [found[name].value, *found[name].interval] for name in ("frechet", "kid")}
        return {**figures, "rms": self.rms(x, self.truth), "n": len(x)}

    def rms(self, x: Tensor, flow: Tensor) -> float:
        """The RMS distance of the first samples to endpoints of the flow, a mean over samples."""
        return float(rms(x[: len(flow)].double() - flow).mean())


def drawing(model: ScoreModel, solver: Solver, nfe: int) -> Draw:
    """The samples of a solver; where it draws noise, each from the next seed."""
    process, seen = model.sde.probability_flow(model), count()

    def draw(x1: Tensor) -> Tensor:
        return solve(process, x1, solver=solver, nfe=nfe, seeds=list(islice(seen, len(x1)))).x

    return draw


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


def file_name(network: str, key: str) -> str:
    """The file of the samples of one row.

    >>> file_name("mnist", "5 diffusers: DDIM trailing")
    'mnist-5-diffusers-DDIM-trailing.npy'
    """
    return re.sub(r"[^\w.+-]+", "-", f"{network} {key}") + ".npy"


def report(content: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = ["# Distance to the flow and distance of features", ""]
    lines += [*(f"    {command}" for command in content["commands"].values()), ""]
    lines += ["Frechet distance and 1000 KID of classifier features against test images, with 95 % intervals,"]
    lines += ["and the RMS distance to the reference solution.", ""]
    for network, rows in content["rows"].items():
        lines += [f"## {network}", "", "| NFE | solver | Frechet | 1000 KID | RMS to the flow | n |"]
        lines += ["| ---: | --- | --- | --- | ---: | ---: |"]
        for key, row in sorted(rows.items(), key=lambda item: int(item[0].split(" ")[0])):
            nfe, name = key.split(" ", 1)
            frechet, kid = _interval(row["frechet"]), _interval([1000 * v for v in row["kid"]])
            lines.append(f"| {nfe} | {name} | {frechet} | {kid} | {row['rms']:.3g} | {row['n']:,} |")
        lines += ["", *matrix(rows), ""]
        for text in sentences(content["pairs"].get(network, [])):
            lines += wrap(text, 100, subsequent_indent="  " * text.startswith("- "), break_on_hyphens=False) or [""]
        lines.append("")
    return "\n".join(lines)


def matrix(rows: dict[str, Any]) -> list[str]:
    r"""A table of Frechet distances with intervals, and RMS distances after the semicolon: solvers by NFE.

    >>> print(*matrix({"5 pf-ode": {"frechet": [1.0, 0.5, 2.0], "rms": 0.25}}), sep="\n")
    | solver | 5 |
    | --- | --- |
    | pf-ode | 1.00 (0.50 to 2.00); 0.250 |
    """
    keys = [key.split(" ", 1) for key in rows]
    budgets = sorted({int(nfe) for nfe, name in keys if name != "flow"})
    names = sorted({name for _, name in keys if name != "flow"}, key=lambda name: (name.startswith("tuned"), name))
    lines = [f"| solver | {' | '.join(map(str, budgets))} |", f"| --- |{' --- |' * len(budgets)}"]
    for name in names:
        found = [rows.get(f"{nfe} {name}") for nfe in budgets]
        cells = [
            "" if row is None else "{:.2f} ({:.2f} to {:.2f}); ".format(*row["frechet"]) + f"{row['rms']:.3f}"
            for row in found
        ]
        lines.append(f"| {short(name)} | {' | '.join(cells)} |")
    return lines


def short(name: str) -> str:
    """A solver's name for a table.

    >>> short("diffusers: UniPCMultistep-2 bh2 trailing zero"), short("tuned, rmse")
    ('UniPC trailing, diffusers', 'tuned, rmse')
    """
    for word, label in (("DPMSolver", "DPM++(2M)"), ("UniPC", "UniPC"), ("DDIM", "DDIM")):
        if word in name:
            return f"{label} {'exponential' if 'exponential' in name else 'trailing'}, diffusers"
    return name


def _interval(figures: list[float]) -> str:
    """A figure with its interval.

    >>> _interval([1.0, 0.5, 2.0])
    '1 (0.5 to 2)'
    """
    return f"{figures[0]:.3g} ({figures[1]:.3g} to {figures[2]:.3g})"


@torch.no_grad()
def main() -> None:
    """Measure the rows that are missing, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned.feature_distance", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run or a .safetensors file")
    feature_options(parser, 5000, NFE, "runs/feature-distance")
    parser.add_argument("--minutes", type=float, default=1.0, help="CPU time of tuning, for each loss")
    parser.add_argument("--noise-minutes", type=float, default=4.0, help="CPU time of tuning with noise")
    parser.add_argument("--only", nargs="+", default=[""], help="only solvers whose name has one of these words")
    parser.add_argument("--samples", type=Path, default=Path("runs/feature-distance"), help="folder of the samples")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.run).eval().requires_grad_(False)
    assert model.shape is not None
    extractor, data = features_and_images(args, model.shape, "test")
    name = f"{args.run.stem}, features {extractor.name}"
    file = args.out / "feature_distance.json"
    content: dict[str, Any] = {"commands": {}, "rows": {}, "pairs": {}}
    content |= json.loads(file.read_text()) if file.exists() else {}
    line, before = command_line("benchmarks.tuned.feature_distance"), content["commands"].get(name)
    content["commands"][name] = line if args.only == [""] or before is None else f"{before}; {line}"
    rows = content["rows"].setdefault(name, {})
    x1 = model.sde.prior((args.n, *model.shape), seeds=range(args.n))
    truth, _ = converged(model, x1[:PAIRED], steps=64, dtype=torch.float32, checked=4)
    judge = Judge(model, extractor, FeatureStatistics.of(data, extractor, "test"), x1, truth)
    args.out.mkdir(parents=True, exist_ok=True)

    def stored(key: str) -> Path:
        return args.samples / file_name(args.run.stem, key)

    def write() -> None:
        file.write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "feature_distance.md").write_text(report(content))

    def wanted(key: str) -> bool:
        return key not in rows and any(word in key for word in args.only)

    def put(key: str, draw: Draw) -> None:
        if wanted(key):
            start = time.process_time()
            rows[key] = judge.row(judge.samples(draw, stored(key)))
            rows[key]["seconds"] = round(time.process_time() - start, 1)
            print(key, rows[key], flush=True)
            write()

    for nfe in args.nfe:
        for method, draw in methods(model, nfe).items():
            put(f"{nfe} {method}", draw)
    put(
        f"{FLOW_STEPS} flow",
        lambda x1: converged(model, x1, steps=FLOW_STEPS, dtype=torch.float32, checked=1)[0].float(),
    )
    for loss in ("rmse", "features", "noise"):
        missing = [nfe for nfe in args.nfe if wanted(f"{nfe} tuned, {loss}")]
        own: dict[str, Any] = {"minutes": args.minutes, "timer": time.process_time, "progress": False}
        if loss == "features":
            own["features"] = features_of_name(own_features(model.shape), data)
        if loss == "noise":
            own |= {"stochastic": True, "minutes": args.noise_minutes, "features": extractor}
        for nfe in missing:
            if judge.has(stored(f"{nfe} tuned, {loss}")):
                put(f"{nfe} tuned, {loss}", torch.clone)
        if missing := [nfe for nfe in missing if wanted(f"{nfe} tuned, {loss}")]:
            if loss == "noise":
                own["real"] = features_and_images(args, model.shape, "train")[1].batch(slice(0, REAL))
            # All of them first: drawing samples in between would take the time that later ones are tuned in.
            found = list(tuned_each(model, missing, loss="rmse" if loss == "noise" else loss, **own))
            print(*(f"{made.nfe} {made.noise}" for made in found if made.noise is not None), sep="\n", flush=True)
            for made in found:
                put(f"{made.nfe} tuned, {loss}", drawing(model, made.table, made.nfe))
                if made.noise is not None and (row := rows.get(f"{made.nfe} tuned, {loss}")) is not None:
                    row["noise"] = made.noise
    kept = {key: torch.from_numpy(np.load(stored(key))) for key in rows if judge.has(stored(key))}
    flow = kept.get(f"{FLOW_STEPS} flow")
    for key, x in kept.items():
        if flow is not None and x is not flow:
            rows[key]["rms"] = judge.rms(x, flow.double())
    if kept:
        features = {key: judge.features(x).features for key, x in kept.items()}
        pairs = paired(rows, features, judge.reference.moments)
        names = [(pair["nfe"], {pair["near"], pair["far"]}) for pair in pairs]
        earlier = content["pairs"].get(name, [])
        kept_pairs = [pair for pair in earlier if (pair["nfe"], {pair["near"], pair["far"]}) not in names]
        content["pairs"][name] = sorted([*kept_pairs, *pairs], key=lambda pair: pair["nfe"])
    write()
    print(report(content))


if __name__ == "__main__":
    main()
