"""Variance of the gradient of a training step for each time sampler.

    python -m benchmarks.training.gradient_variance [RUN] [--batches 128] [--batch-size 64] [--json FILE]

For a trained model (the bundled digits network by default) and a weight, every time sampler estimates the same
gradient: log-normal and logit-normal samples have importance weights. The result is the total variance of the gradient
of a batch, tr Cov[g] = E |g - E g|^2, over that of independent uniform times, with the standard error of the ratio from
four groups of batches. At 1 there is no gain; at 0.5 a batch of half the size has the same variance.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sde_diffusion.data import Data, load_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED
from sde_diffusion.training.losses import denoising_loss
from sde_diffusion.training.time_sampling import TIME_SAMPLERS, LogitNormal, LogNormal, TimeSampler

T_MIN = 1e-3
GROUPS = 4
LOSS_WEIGHTS = ("simple", "likelihood", "sigmoid")


def unbiased(times: TimeSampler) -> TimeSampler:
    """The sampler with importance weights that keep the average over uniform times."""
    return replace(times, corrected=True) if isinstance(times, LogNormal | LogitNormal) else times


def variance(model: ScoreModel, data: Data, weight: str, times: TimeSampler, batches: int, size: int) -> torch.Tensor:
    """tr Cov[g] of a batch from each group of batches, (GROUPS,) float64."""
    generator = torch.Generator().manual_seed(0)
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    state = times.start()

    def gradient() -> torch.Tensor:
        nonlocal state
        x0 = data.batch(torch.randint(len(data), (size,), generator=generator))
        eps = torch.randn(x0.shape, generator=generator)
        t, factor = times.sample(size, T_MIN, generator, model.sde, state)
        losses = denoising_loss(model, x0, t, eps, weight)
        state = times.update(state, t, losses, T_MIN)
        gradients = torch.autograd.grad((losses * factor.float()).mean(), parameters)
        return torch.cat([g.flatten() for g in gradients]).double()

    if state:  # an adaptive sampler adapts before the measurement
        with torch.no_grad():
            for _ in range(8):
                x0 = data.batch(torch.randint(len(data), (256,), generator=generator))
                t, _ = times.sample(256, T_MIN, generator, model.sde)
                eps = torch.randn(x0.shape, generator=generator)
                state = times.update(state, t, denoising_loss(model, x0, t, eps, weight), T_MIN)
    out = []
    for _ in range(GROUPS):
        n = batches // GROUPS
        mean, total = torch.zeros(()), torch.zeros(())
        for k in range(n):  # Welford's recursion for all parameters at once
            g = gradient()
            before = g - mean
            mean = mean + before / (k + 1)
            total = total + before @ (g - mean)
        out.append(total / (n - 1))
    return torch.stack(out)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?", help="run or checkpoint; the bundled one by default")
    parser.add_argument("--batches", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.batches < 2 * GROUPS:
        parser.error(f"--batches must be at least {2 * GROUPS}")
    model, data = load(arguments.run or BUNDLED), load_data("digits")
    rows: dict[str, dict[str, list[float]]] = {}
    for weight in LOSS_WEIGHTS:
        found = {
            name: variance(model, data, weight, unbiased(times), arguments.batches, arguments.batch_size)
            for name, times in TIME_SAMPLERS.items()
        }
        for name, values in found.items():
            ratio = values / found["uniform"].mean()
            rows.setdefault(name, {})[weight] = [float(ratio.mean()), float(ratio.std()) / GROUPS**0.5]
    table = Table("times", *LOSS_WEIGHTS)
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3f} +- {error:.3f}" for value, error in row.values()))
    Console(width=100).print(table)
    if arguments.json:
        about = {"model": str(arguments.run or BUNDLED.name), "t_min": T_MIN, "batches": arguments.batches}
        about |= {"batch_size": arguments.batch_size}
        arguments.json.write_text(json.dumps({**about, "variance_over_uniform": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
