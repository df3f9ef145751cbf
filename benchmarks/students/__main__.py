"""Students of exact mixtures, against the exact flow.

    python -m benchmarks.students [--laws ring grid] [--methods progressive consistency] [--steps N] [--json FILE]

The teacher is the exact denoiser of a mixture, so that nothing but the student errs. By law, method and evaluations:

- rms     root mean square distance of the student's samples to the exact flow's end of the same initial noise; for a
          consistency model of several steps, which adds noise on its way, that of f at as many noise levels along the
          exact flow
- sliced  sliced 2-Wasserstein distance of 10,000 samples to as many draws from the law
- modes   number of modes with at least a quarter of their share of the samples

The solvers beside it, ddim and pf-ode, have the exact score at the same number of evaluations.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, distill, sample
from sde_diffusion.evaluation.metrics.wasserstein import sliced_wasserstein
from sde_diffusion.networks import build
from solvers import solve
from solvers.grids import make_grid

SAMPLES = 10_000
SEED = 1
BUDGETS = (1, 2, 4)
STEPS = {"progressive": 1500, "consistency": 3000, "consistency-training": 3000}  # updates; of one halving
START = 128  # steps of the first teacher of progressive distillation
# Few levels with accurate steps between them, a loss that sees the cliffs of the map, and times where it is decided.
CHOICES: dict[str, dict[str, Any]] = {
    "consistency": {
        "settings": {"first": 8, "last": 8, "teacher_steps": 4, "huber": 0.1},
        "time_sampling": "log-normal-wide",
    }
}
ORDER = ("ddim", "pf-ode", *STEPS)
Entry = dict[str, Any]


def ring() -> tuple[Tensor, float]:
    """Eight modes on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return 1.2 * torch.stack([angle.cos(), angle.sin()], 1), 0.25


def grid() -> tuple[Tensor, float]:
    """Twenty-five modes on a 5 x 5 grid, six standard deviations and more apart."""
    line = torch.linspace(-1.4, 1.4, 5, dtype=torch.float64)
    return torch.cartesian_prod(line, line), 0.1


LAWS = {"ring": ring, "grid": grid}


def drawn(means: Tensor, std: float, n: int, seed: int) -> Tensor:
    """Draws from the equal mixture of Gaussians."""
    g = torch.Generator().manual_seed(seed)
    noise = std * torch.randn(n, 2, generator=g, dtype=torch.float64)
    return (means[torch.randint(0, len(means), (n,), generator=g)] + noise).float()


def modes_found(x: Tensor, means: Tensor) -> int:
    """The number of modes that are nearest to at least a quarter of their share of the samples."""
    share = torch.cdist(x.double(), means).argmin(1).bincount(minlength=len(means)) / len(x)
    return int((share >= 0.25 / len(means)).sum())


def map_error(exact: ScoreModel, student: ScoreModel, nfe: int, end: Tensor) -> float:
    """RMS distance of f to the flow's end, over as many levels of the sampler's grid along the exact flow."""
    sde, problem = exact.sde, exact.sde.probability_flow(exact)
    x1 = sde.prior((SAMPLES, 2), seeds=SEED * 2**32 + torch.arange(SAMPLES))
    errors = []
    for t in make_grid("karras", problem, nfe)[:-1].tolist():
        x = x1 if t == 1 else solve(problem, x1, solver="pf-ode", grid=make_part(problem, t)).x
        found = student.denoise(x, torch.full((len(x),), t, dtype=torch.float64))
        errors.append((found - end).square().mean())
    return float(torch.stack(errors).mean().sqrt())


def make_part(problem: Any, t: float) -> list[float]:
    """Times of a run from 1 to t, on the Karras levels above t."""
    times = [u for u in make_grid("karras", problem, 200).tolist() if u > t]
    return [*times[:: max(len(times) // 50, 1)], t]


@torch.no_grad()
def figures(
    model: ScoreModel, exact: ScoreModel, means: Tensor, std: float, end: Tensor, nfe: int, **how: Any
) -> Entry:
    """The entries of a solver or student."""
    x = sample(model, SAMPLES, nfe=nfe, seed=SEED, **how)
    consistency = model is not exact and model.sampler is not None and model.sampler.stochastic
    rms = map_error(exact, model, nfe, end) if consistency else float((x - end).square().mean().sqrt())
    sliced = float(sliced_wasserstein(x, drawn(means, std, SAMPLES, 3)))
    return {"nfe": nfe, "rms": rms, "sliced": sliced, "modes": modes_found(x, means)}


def measure(law: str, methods: list[str], steps: int | None, seed: int) -> list[Entry]:
    """All entries of a law; the seed is that of the student's first weights and of its training."""
    means, std = LAWS[law]()
    exact = GaussianMixture(means.float(), std=std, sde=VPSDE())
    end = sample(exact, SAMPLES, nfe=200, seed=SEED)
    rows = []
    for solver in ("ddim", "pf-ode"):
        for nfe in BUDGETS:
            if solver == "ddim" or nfe > 2:
                found = figures(exact, exact, means, std, end, nfe, solver=solver)
                rows.append({"law": law, "method": solver, **found, "seconds": 0.0})
    data = drawn(means, std, 50_000, 2)
    for method in methods:
        start = time.process_time()
        torch.manual_seed(seed)
        network = build("mlp", shape=(2,), width=128, embedding="log", frequencies=32)
        student = ScoreModel(network, VPSDE(), "velocity", shape=(2,))
        made = distill(
            exact, data, method, nfe=4, start=START, student=student, steps=steps or STEPS[method], seed=seed,
            batch_size=256, normalize="none", progress=False, **CHOICES.get(method, {}),
        )  # fmt: skip
        seconds = time.process_time() - start
        for nfe in (4,) if method == "progressive" else BUDGETS:
            row = {"law": law, "method": method, **figures(made, exact, means, std, end, nfe), "seconds": seconds}
            print(row, flush=True)
            rows.append(row)
    return rows


def table(rows: list[Entry]) -> str:
    """The entries in Markdown."""
    lines = ["| law | method | NFE | RMS to the flow | sliced W2 | modes | training |", "| --- " * 7 + "|"]
    for r in rows:
        took = f"{r['seconds']:.0f} s" if r["seconds"] else "none"
        lines.append(
            f"| {r['law']} | {r['method']} | {r['nfe']} | {r['rms']:.3f} | {r['sliced']:.3f} | {r['modes']} | {took} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    about, formats = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about + "\n\n" + formats, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--laws", nargs="+", choices=list(LAWS), default=list(LAWS))
    parser.add_argument("--methods", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--steps", type=int, help=f"updates; of progressive, for each halving; by default {STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the training")
    parser.add_argument("--json", type=Path, help="file of results; its rows of other laws and methods stay")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(asked.json.read_text())["rows"] if asked.json and asked.json.is_file() else []
    for law in asked.laws:
        found = measure(law, asked.methods, asked.steps, asked.seed)
        again = {(row["law"], row["method"]) for row in found}
        rows = [row for row in rows if (row["law"], row["method"]) not in again] + found
        rows.sort(key=lambda row: (list(LAWS).index(row["law"]), ORDER.index(row["method"]), row["nfe"]))
        if asked.json:
            asked.json.write_text(json.dumps({"seed": asked.seed, "rows": rows}, indent=1) + "\n")
            asked.json.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
