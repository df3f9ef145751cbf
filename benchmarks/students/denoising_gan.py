"""A denoising diffusion GAN on 25 modes, beside denoisers with one mean.

    python -m benchmarks.students.denoising_gan [--steps N] [--batch-size N] [--seeds N] [--json FILE] [--image PNG]

The law is the grid of ``benchmarks.students``. ddpm, ddim and pf-ode have the exact denoiser E[x_0 | x_t], so that
they fail by the size of their steps alone; ddpm draws its steps from the posterior of the GAN's own steps, at the same
times. Entries:

- modes   number of modes with at least a quarter of their share of the samples
- near    share of samples within 2 standard deviations of a mode; 0.86 for the law, 0.26 for a uniform law
- sliced  sliced 2-Wasserstein distance of 10,000 samples to as many draws from the law
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.students.__main__ import SAMPLES, SEED, drawn, grid, modes_found
from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, distill, sample, train
from sde_diffusion.distillation.denoising_gan import step_times
from sde_diffusion.evaluation.metrics.wasserstein import sliced_wasserstein
from sde_diffusion.networks import build
from sde_diffusion.report.pictures import save_figure

NFE = 4
TEACHER = 1500  # updates of the denoiser that the generator begins as
TITLES = {"law": "the law", "denoising-gan": "denoising GAN, 4 steps", "ddpm": "Gaussian denoiser, 4 steps"}


def near(x: Tensor, means: Tensor, std: float) -> float:
    """The share of samples within 2 standard deviations of a mode."""
    return float((torch.cdist(x.double(), means).amin(1) < 2 * std).double().mean())


def trained(means: Tensor, std: float, steps: int, batch_size: int, rate: float, seed: int) -> tuple[ScoreModel, float]:
    """A generator that begins as a trained denoiser, and the seconds of processor time that both trainings took."""
    start, data = time.process_time(), drawn(means, std, 50_000, 2)
    torch.manual_seed(seed)
    network = build("mlp", shape=(2,), width=128, depth=2, embedding="log", frequencies=32)
    plain = ScoreModel(network, VPSDE(), "velocity", shape=(2,))
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "normalize": "none", "progress": False}
    teacher = train(plain, data, steps=TEACHER, time_sampling="log-normal-wide", **options)
    model = distill(teacher, data, "denoising-gan", nfe=NFE, steps=steps, learning_rate=rate, **options)
    return model, time.process_time() - start


def plot(path: Path, clouds: dict[str, Tensor]) -> None:
    """Draw the samples side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, x) in zip(figure.subplots(1, len(clouds)), clouds.items(), strict=True):
        axes.plot(*x[:4000].T.tolist(), ".", markersize=1.2)
        axes.set(title=TITLES[name], aspect="equal", xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), xticks=[], yticks=[])
    save_figure(path, figure, dpi=120)


@torch.no_grad()
def main() -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the generator")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--image", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    means, std = grid()
    law = drawn(means, std, SAMPLES, 3)
    exact = GaussianMixture(means.float(), std=std, sde=VPSDE())
    rows: list[dict[str, Any]] = []

    def note(method: str, x: Tensor, seconds: float = 0.0) -> Tensor:
        rows.append({
            "method": method, "nfe": NFE, "modes": modes_found(x, means), "near": near(x, means, std),
            "sliced": float(sliced_wasserstein(x, law)), "seconds": seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)
        return x

    clouds = {"law": note("law", drawn(means, std, SAMPLES, 4))}
    for seed in range(asked.seeds):
        with torch.enable_grad():
            model, seconds = trained(means, std, asked.steps, asked.batch_size, asked.learning_rate, seed)
        found = note("denoising-gan", sample(model, SAMPLES, seed=SEED), seconds)
        clouds.setdefault("denoising-gan", found)
    times = torch.tensor(step_times(exact.sde, NFE), dtype=torch.float64)
    clouds["ddpm"] = note("ddpm", sample(exact, SAMPLES, solver="ddpm", grid=times, seed=SEED))
    for solver in ("ddim", "pf-ode"):
        note(solver, sample(exact, SAMPLES, solver=solver, nfe=NFE, seed=SEED))
    if asked.image:
        plot(asked.image, clouds)
    if asked.json:
        settings = {"steps": asked.steps, "batch_size": asked.batch_size}
        asked.json.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
