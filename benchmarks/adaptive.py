"""Adaptive solvers: endpoint error against network evaluations, over a sweep of tolerances.

    python -m benchmarks.adaptive [--run DIR] [--samples 64] [--network-samples 16] [--out DIR]

The problems are an exact mixture of Gaussians around 400 digits (64 dimensions) and a trained
network: that of ``--run``, or else the bundled one. Compared are ``rk45``, ``tsit5`` and ``rk23``
in the angle between data and noise, ``rk45`` and ``rk23`` on the raw drift, and the raw drift under
torchdiffeq's dopri5, both as the library runs it and through our adapter (which sets the first step
and the end), and scipy's RK45.

The error is the distance of a sample to its reference solution (root mean square over its entries),
after the last denoising step; the table has its median and root mean square over the samples. NFE
is the mean over samples. The ratio compares evaluations at equal error, interpolated between
tolerances on logarithmic scales: ours at the errors that torchdiffeq reached. Writes adaptive.json
and adaptive.png.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchdiffeq import odeint

from sde_diffusion import VPSDE, ScoreModel, load
from sde_diffusion.data import load_data
from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.storage.locate import BUNDLED
from solvers import PAIRS, ReverseProcess, Solver, solve
from solvers.backends import BackendState, Scipy, TorchDiffEq
from solvers.classical.embedded_rk import EmbeddedRungeKutta
from solvers.solver import sample_rms

matplotlib.use("Agg")

TOLERANCES = tuple(10.0 ** (-k / 2) for k in range(3, 12))
RIVAL = "torchdiffeq dopri5, raw"


@dataclass(frozen=True)
class AsItIs(TorchDiffEq):
    """``torchdiffeq.odeint`` with its own settings; times are clamped, since it probes outside."""

    def step(self, problem: Any, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Any) -> tuple[Tensor, Tensor, Any]:
        """Integrate over the whole interval."""
        start, end = float(t.flatten()[0]), float(s)

        def drift(time: Tensor, y: Tensor) -> Tensor:
            return problem.drift(y, time.double().cpu().clamp(min(start, end), max(start, end)))

        times = torch.tensor([start, end], dtype=torch.float64)
        x = odeint(drift, x, times, rtol=self.rtol, atol=self.atol, method="dopri5")[-1]
        stalled = torch.zeros(len(x), dtype=torch.bool)
        return x, s.expand(t.shape), BackendState(stalled, torch.zeros(len(x), 1))


def contestants(tolerance: float) -> dict[str, Solver]:
    """The solvers at one tolerance."""
    return {
        **{f"{n}, angle": EmbeddedRungeKutta(PAIRS[n], tolerance) for n in ("rk45", "tsit5", "rk23")},
        "rk45, raw": EmbeddedRungeKutta(PAIRS["rk45"], tolerance, form="raw"),
        "rk23, raw": EmbeddedRungeKutta(PAIRS["rk23"], tolerance, form="raw"),
        RIVAL: AsItIs("dopri5", tolerance, tolerance),
        "torchdiffeq dopri5, adapter": TorchDiffEq("dopri5", tolerance, tolerance),
        "scipy RK45, raw": Scipy("RK45", tolerance, tolerance),
    }


def sweep(process: ReverseProcess, x1: Tensor, finest: float) -> list[dict[str, Any]]:
    """One record for each solver and tolerance down to the finest."""
    exact = solve(process, x1, solver=EmbeddedRungeKutta(rtol=finest / 100)).x
    records = []
    for tolerance in (t for t in TOLERANCES if t >= 0.99 * finest):
        for name, solver in contestants(tolerance).items():
            # Low orders are left out at tolerances where they take thousands of evaluations.
            if name.startswith("rk23") and tolerance < 3e-5:
                continue
            out = solve(process, x1, solver=solver)
            error = sample_rms(out.x - exact)
            records.append(
                {
                    "solver": name,
                    "tolerance": tolerance,
                    "nfe": float(out.nfe.double().mean()),
                    "nfe_max": int(out.nfe.max()),
                    "median": float(error.median()),
                    "rms": float(error.square().mean().sqrt()),
                    "ok": out.status.count("ok") / len(x1),
                }
            )
    return records


def at_error(records: list[dict[str, Any]], name: str, kind: str, error: float) -> float:
    """Evaluations that a solver needs for an error; NaN outside its sweep."""
    points = sorted((r[kind], r["nfe"]) for r in records if r["solver"] == name)
    x, y = np.log([p[0] for p in points]), np.log([p[1] for p in points])
    inside = x[0] <= math.log(error) <= x[-1]
    return math.exp(np.interp(math.log(error), x, y)) if inside else math.nan


def ratios(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median over the sweep of NFE(ours) / NFE(rival) at the rival's errors below 0.05."""
    out: dict[str, dict[str, float]] = {}
    rival = [r for r in records if r["solver"] == RIVAL]
    for name in dict.fromkeys(r["solver"] for r in records):
        out[name] = {}
        for kind in ("median", "rms"):
            pairs = [at_error(records, name, kind, r[kind]) / r["nfe"] for r in rival if r[kind] < 0.05]
            out[name][kind] = float(np.nanmedian(pairs)) if np.isfinite(pairs).any() else math.nan
    return out


def plot(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Error over evaluations, one panel for each problem."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4.5), squeeze=False)
    for axis, (title, records) in zip(axes[0], results.items(), strict=True):
        for name in dict.fromkeys(r["solver"] for r in records):
            points = [(r["nfe"], r["median"]) for r in records if r["solver"] == name]
            axis.loglog(*zip(*points, strict=True), marker=".", label=name)
        axis.set(title=title, xlabel="network evaluations (mean)", ylabel="endpoint error (median)")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--run", help="a run, checkpoint or exported model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--network-samples", type=int, default=16)
    parser.add_argument("--std", type=float, default=0.15, help="number of samples of the mixture")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    console = Console()

    digits = load_data("digits")
    means = digits.batch(torch.arange(400)).flatten(1).double()
    problems: dict[str, ScoreModel] = {
        "digits mixture": GaussianMixture(means, args.std, sde=VPSDE()),
        "network": load(args.run or BUNDLED).double(),
    }
    results = {}
    for title, model in problems.items():
        model.requires_grad_(False)
        # A network is rough in t on small scales: below 1e-4 the steps resolve only the roughness.
        n, finest = (args.network_samples, 1e-4) if title == "network" else (args.samples, 3e-6)
        x1 = model.sde.prior((n, *model.shape), seeds=range(n), dtype=torch.float64)
        with torch.no_grad():
            records = results[title] = sweep(model.sde.probability_flow(model), x1, finest)
        table = Table("solver", "tolerance", "NFE", "max", "median", "rms", "ok", title=title)
        for r in sorted(records, key=lambda r: r["solver"]):
            row = (f"{r['nfe']:.1f}", str(r["nfe_max"]), f"{r['median']:.1e}", f"{r['rms']:.1e}")
            table.add_row(r["solver"], f"{r['tolerance']:.1e}", *row, f"{r['ok']:.0%}")
        console.print(table)
        short = Table("solver", "by median", "by rms", title=f"{title}: NFE / NFE of {RIVAL} at equal error")
        for name, ratio in ratios(records).items():
            short.add_row(name, f"{ratio['median']:.2f}", f"{ratio['rms']:.2f}")
        console.print(short)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {k: {"ratios": ratios(v), "records": v} for k, v in results.items()}
    (args.out / "adaptive.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(results, args.out / "adaptive.png")


if __name__ == "__main__":
    main()
