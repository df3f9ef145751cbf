"""Log-likelihood: error in nats against network evaluations, compared with the usual method, on the bundled network.

    python -m benchmarks.likelihood [--samples 8] [--out benchmarks/results] [--image docs/images/likelihood.png]

The usual method is that of Song et al. 2021: scipy's RK45 with rtol = atol = 1e-5 on the raw drift in t from 1e-5 to 1,
the whole batch one state, one Rademacher probe. All runs have the same held-out, dequantised digits, the same probes
and the network in float64, so that they differ in the integration only. The reference is ``rk45`` at a tolerance of
5e-7. An error is |nats - reference|; the results are its median and root mean square over the samples.
``at_equal_error`` is the smallest number of evaluations in the sweep of a solver with an error at most that of the
usual method.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_diffusion import ScoreModel, load
from sde_diffusion.data import load_data
from sde_diffusion.likelihood.divergence import draw_probes, value_and_traces
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.likelihood.report import likelihood_data
from sde_diffusion.storage.locate import BUNDLED
from solvers.classical.adams import Adams

T_MIN = 1e-5
RECIPE = "scipy RK45, raw"


def recipe(model: ScoreModel, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Nats and evaluations of the usual method."""
    batch, dim = len(x), x[0].numel()
    process, probes = model.sde.probability_flow(model), draw_probes("rademacher", range(batch), 1, dim)
    alpha = float(model.sde.marginal(T_MIN)[0])
    calls = 0

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        y = torch.from_numpy(state[: batch * dim].copy()).reshape(x.shape)
        time = torch.tensor(t, dtype=torch.float64).expand(batch, *(1,) * (x.ndim - 1))
        drift, traces = value_and_traces(lambda z: process.drift(z, time), y, probes)
        return torch.cat([drift.flatten(), traces[:, 0]]).numpy()

    start = np.concatenate([(alpha * x).flatten().numpy(), np.zeros(batch)])
    end = torch.from_numpy(solve_ivp(slope, (T_MIN, 1.0), start, rtol=tolerance, atol=tolerance).y[:, -1])
    variance = model.sde.prior_std() ** 2
    x1 = end[: batch * dim].reshape(batch, dim)
    prior = -x1.square().sum(1) / (2 * variance) - dim / 2 * math.log(2 * math.pi * variance)
    return prior + end[batch * dim :] + dim * math.log(alpha), float(calls)


def sweep(model: ScoreModel, x: Tensor) -> list[dict[str, Any]]:
    """One record for each solver and NFE or tolerance."""
    options: dict[str, Any] = {"trace": "hutchinson", "n_probes": 1, "t_min": T_MIN}
    reference = log_likelihood(model, x, tolerance=5e-7, **options).nats
    records = []

    def note(name: str, setting: float, nats: Tensor, nfe: float) -> None:
        error = (nats - reference).abs()
        rms = float(error.square().mean().sqrt())
        record = {"solver": name, "setting": setting, "nfe": nfe, "median": float(error.median()), "rms": rms}
        print(record, flush=True)
        records.append(record)

    for tolerance in (1e-4, 1e-5):
        note(RECIPE, tolerance, *recipe(model, x, tolerance))
    for steps in (60, 80, 100, 115, 200, 400):
        note("adams", steps, log_likelihood(model, x, solver=Adams(), steps=steps, **options).nats, steps + 1)
    for name, tolerances in {"rk45": (1e-3, 1e-4), "rk23": (1e-3, 1e-4)}.items():
        for tolerance in tolerances:
            found = log_likelihood(model, x, solver=name, tolerance=tolerance, **options)
            note(name, tolerance, found.nats, float(found.nfe.double().mean()))
    return records


def at_equal_error(records: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    """Evaluations of the usual method and of each solver at its error, None if the sweep does not reach it."""
    target = next(r for r in records if r["solver"] == RECIPE and r["setting"] == 1e-5)
    out: dict[str, float | None] = {RECIPE: target["nfe"]}
    for name in dict.fromkeys(r["solver"] for r in records):
        if name != RECIPE:
            reached = [r["nfe"] for r in records if r["solver"] == name and r[kind] <= target[kind]]
            out[name] = min(reached, default=None)
    return out


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Error over evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(r["solver"] for r in records):
        points = sorted((r["nfe"], r["rms"]) for r in records if r["solver"] == name)
        axes.loglog(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel="network evaluations", ylabel="error, nats (root mean square)", title="log-likelihood of digits")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, format="png", dpi=100)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--image", type=Path, default=Path("docs/images/likelihood.png"))
    args = parser.parse_args()
    model = load(BUNDLED).double().requires_grad_(False)
    x, _ = likelihood_data(load_data("digits", split="test"), args.samples, seed=0)
    records = sweep(model, x)
    table = Table("solver", "setting", "NFE", "median", "rms")
    for r in records:
        table.add_row(r["solver"], f"{r['setting']:g}", f"{r['nfe']:.0f}", f"{r['median']:.1e}", f"{r['rms']:.1e}")
    Console().print(table)
    equal = {kind: at_equal_error(records, kind) for kind in ("median", "rms")}
    print(equal)
    report = {"samples": args.samples, "t_min": T_MIN, "at_equal_error": equal, "records": records}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "likelihood.json").write_text(json.dumps(report, indent=1) + "\n")
    args.image.parent.mkdir(parents=True, exist_ok=True)
    plot(records, args.image)


if __name__ == "__main__":
    main()
