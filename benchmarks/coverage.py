"""Coverage of the printed intervals, by simulation.

    python -m benchmarks.coverage --out benchmarks/results/coverage     about 15 minutes of a core
    python -m benchmarks.coverage --share 0.1                           a tenth of the repetitions

The results are written after every cell; the same command with ``--resume`` goes on from them.

Two tables. The first has the share of comparisons of equal solvers in which ``compare`` calls one solver worse than the
best; the nominal value is 0.05. The second has every metric on samples of known distributions: its bias at n samples
relative to its value for very many samples, and the coverage of its 95 % interval. For unbiased metrics the true value
is the value of the distributions. For the others it is the mean of the metric at this n, because their intervals
cover sampling error only, without bias.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.comparison.result import Comparison, ComparisonRow
from sde_diffusion.evaluation.metrics import METRICS, Moments, Sets, frechet_distance, measure

SOLVERS, SAMPLES = (2, 6, 12), (16, 64, 256)
LAWS: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "normal": lambda rng, k, n: 5 + rng.standard_normal((k, n)),
    "log-normal": lambda rng, k, n: np.exp(rng.standard_normal((k, n))),
}
# (n, d) of each metric, and the number of sample sets.
CELLS = {
    "frechet": ((200, 8, 1000), (2000, 20, 600), (5000, 64, 300)),
    "kid": ((500, 8, 300),),
    "mmd": ((500, 8, 300),),
    "sliced-wasserstein": ((200, 8, 60),),
    "neighbours": ((500, 8, 60),),
}
APART = (0.0, 0.1, 0.5)
_MANY = 20_000
_FIGURES = ("kid", "mmd")  # unbiased metrics, whose true value is that of the distributions


def false_differences(solvers: int, n: int, law: str, comparisons: int) -> float:
    """The share of comparisons of equal solvers that call one of them different."""
    rng, found = np.random.default_rng(solvers * n), 0
    for _ in range(comparisons):
        errors = torch.from_numpy(LAWS[law](rng, solvers, n))
        rows = [ComparisonRow(str(k), 8, 8.0, e, None, None, 0.0) for k, e in enumerate(errors)]
        comparison = Comparison(rows, n, n, 0, None)
        found += any((v := comparison.verdict(row)) is not None and not v.tie for row in rows)
    return found / comparisons


class Laws:
    """A reference N(0, C) in d dimensions, and a distribution whose mean and covariance differ by ``apart``."""

    def __init__(self, d: int, apart: float) -> None:
        self.generator = torch.Generator().manual_seed(d)
        a = self.normal(d, d) / math.sqrt(d)
        covariance = a @ a.T + 0.3 * torch.eye(d, dtype=torch.float64)
        self.reference = torch.linalg.cholesky(covariance)
        self.factor = (torch.eye(d, dtype=torch.float64) + apart * self.normal(d, d) / math.sqrt(d)) @ self.reference
        self.mean = apart * self.normal(d)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def generated(self, n: int) -> Tensor:
        """Samples of the distribution."""
        return self.mean + self.normal(n, len(self.mean)) @ self.factor.T

    def real(self, n: int) -> Tensor:
        """Samples of the reference."""
        return self.normal(n, len(self.mean)) @ self.reference.T

    @property
    def moments(self) -> tuple[Moments, Moments]:
        """The exact moments of the reference and of the distribution."""
        zero, many = torch.zeros_like(self.mean), 10**9
        return tuple(  # type: ignore[return-value]
            Moments(many, m, f @ f.T * (many - 1)) for m, f in ((zero, self.reference), (self.mean, self.factor))
        )


def cell(metric: str, n: int, d: int, sets: int, apart: float) -> list[dict[str, Any]]:
    """The bias and the coverage of every value of a metric."""
    laws = Laws(d, apart)
    if metric == "frechet":
        reference, law = laws.moments
        truth = {"frechet": frechet_distance(law, reference)}
        fixed = laws.real(4)
    else:
        reference, fixed, truth = None, laws.real(n), {}
    drawn: dict[str, list[tuple[float, float, float]]] = {}
    for k in range(sets):
        # The intervals of kid and mmd include the sampling error of both sets, the others that of the generated set.
        real = laws.real(n) if metric in _FIGURES else fixed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few samples
            found = measure(Sets(laws.generated(n), real, reference, seed=k), [metric])
        for name, figure in found.items():
            drawn.setdefault(name, []).append((figure.value, *figure.interval))
    if metric in _FIGURES:
        truth = {metric: _limit(metric, laws)}
    rows, limits = [], {} if truth else _limits(metric, laws, fixed)
    for name, values in drawn.items():
        value, low, high = np.array(values).T
        about = truth.get(name, float(value.mean()))
        many = truth[name] if name in truth else limits[name]
        held = float(((low <= about) & (about <= high)).mean())
        rows.append(
            {
                "figure": name,
                "n": n,
                "d": d,
                "apart": apart,
                "sets": sets,
                "truth": many,
                "bias": float(value.mean() - many),
                "bias_error": float(value.std() / math.sqrt(sets)),
                "spread": float(value.std(ddof=1)),
                "about": "truth" if name in truth else "mean at n",
                "coverage": held,
            }
        )
    return rows


def _limit(metric: str, laws: Laws) -> float:
    """Of a figure without bias: the mean over large sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = [METRICS[metric].measure(Sets(laws.generated(4000), laws.real(4000)))[0].value for _ in range(12)]
    return float(np.mean(found))


def _limits(metric: str, laws: Laws, real: Tensor) -> dict[str, float]:
    """The values with very many generated samples and the same reference."""
    found = METRICS[metric].measure(Sets(laws.generated(_MANY), real, draws=2))
    return {name: estimate.value for name, estimate in zip(METRICS[metric].figures, found, strict=True)}


def markdown(command: str, false: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Both tables as text."""
    out = ["# How often intervals hold", "", f"    {command}", "", "## A false difference in `compare`", ""]
    out += ["Share of comparisons of equal solvers in which one is called different from the best; right: 0.05.", ""]
    out += ["| law of errors | samples | " + " | ".join(f"{k} solvers" for k in SOLVERS) + " |"]
    out += ["| --- | ---: |" + " ---: |" * len(SOLVERS)]
    for law in LAWS:
        for n in SAMPLES:
            cells = [x for x in false if x["law"] == law and x["n"] == n]
            shown = [f"{x['share']:.3f} +- {x['standard_error']:.3f}" for x in cells]
            out.append(f"| {law} | {n} | " + " | ".join(shown) + " |")
    out += ["", "## Metrics", ""]
    out += ["| figure | n | d | laws apart | truth | bias | spread | coverage of 95 % | of |"]
    out += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for x in rows:
        out.append(
            f"| {x['figure']} | {x['n']} | {x['d']} | {x['apart']:g} | {x['truth']:.4g} | {x['bias']:+.2g} +- "
            f"{x['bias_error']:.1g} | {x['spread']:.2g} | {x['coverage']:.3f} | {x['about']} |"
        )
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="path without suffix of a .md and a .json file")
    parser.add_argument("--share", type=float, default=1.0, help="share of the repetitions")
    parser.add_argument("--resume", action="store_true", help="keep the cells that --out already has")
    args = parser.parse_args(argv)
    share = "" if args.share == 1 else f" --share {args.share:g}"
    content: dict[str, Any] = {"command": f"python -m benchmarks.coverage{share}"}
    content |= {"false_differences": [], "metrics": []}
    if args.resume:
        before = json.loads(args.out.with_name(f"{args.out.name}.json").read_text())
        if before["command"] != content["command"]:
            parser.error(f"--out is of another command: {before['command']}")
        content = before
    false, rows = content["false_differences"], content["metrics"]

    def keep(found: list[dict[str, Any]], into: list[dict[str, Any]]) -> None:
        into.extend(found)
        print(json.dumps(found), flush=True)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_name(f"{args.out.name}.md").write_text(markdown(content["command"], false, rows))
            args.out.with_name(f"{args.out.name}.json").write_text(json.dumps(content, indent=1) + "\n")

    for metric, cells in CELLS.items():
        for n, d, sets in cells:
            for apart in APART:
                known = {(x["figure"], x["n"], x["d"], x["apart"]) for x in rows}
                if (METRICS[metric].figures[0], n, d, apart) not in known:
                    keep(cell(metric, n, d, max(2, round(args.share * sets)), apart), rows)
    for law in LAWS:
        for n in SAMPLES:
            for solvers in SOLVERS:
                if (law, n, solvers) not in {(x["law"], x["n"], x["solvers"]) for x in false}:
                    usual = 1000 if solvers * n < 500 else 500 if solvers * n < 2000 else 300
                    count = max(2, round(args.share * usual))
                    found = false_differences(solvers, n, law, count)
                    error = math.sqrt(max(found, 1 / count) * (1 - found) / count)
                    entry = {"law": law, "n": n, "solvers": solvers, "comparisons": count}
                    keep([{**entry, "share": found, "standard_error": error}], false)
    print(markdown(content["command"], false, rows))


if __name__ == "__main__":
    main()
