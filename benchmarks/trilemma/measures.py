"""What is measured: samples against test images, speed, likelihood, reconstruction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.autoregressive import TwoStages
from benchmarks.baselines.vqvae import perplexity
from sde_diffusion import ScoreModel, bits_per_dim, log_likelihood
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import evaluate
from sde_diffusion.likelihood.dequantization import dequantise
from solvers.classical.adams import Adams

Entry = dict[str, Any]
LN2 = math.log(2)
TIMED = 100


def quality(x: Tensor, reference: FeatureStatistics) -> Entry:
    """Each figure with its standard error: frechet, kid, precision, recall, density, coverage."""
    found = evaluate(x, reference, metrics=("frechet", "kid", "neighbours"), progress=False)
    return {name: [figure.value, figure.standard_error] for name, figure in found.items()}


def speed(draw: Callable[[int], Tensor], n: int = TIMED) -> float:
    """Samples a second of processor time, in one batch on one core, the faster of two."""
    took = []
    for _ in range(2):
        start = time.process_time()
        draw(n)
        took.append(time.process_time() - start)
    return n / max(min(took), 1e-9)


def levels(x: Tensor) -> Tensor:
    """Images with values from -1 to 1 as whole numbers from 0 to 255."""
    return ((x + 1) * 127.5).round().long()


def bits(nats: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    """Mean bits per dimension of dequantised images and its standard error."""
    with torch.no_grad():
        found = bits_per_dim(nats(dequantise(levels(x)).float()).double(), dim=x[0].numel()).bits
    return [float(found.mean()), float(found.std()) / math.sqrt(len(found))]


def flow_nats(model: ScoreModel, steps: int = 60) -> Callable[[Tensor], Tensor]:
    """The log-density of a score model by its probability flow, one probe."""
    return lambda x: log_likelihood(model, x.double(), trace="hutchinson", n_probes=1, solver=Adams(), steps=steps).nats


def codes(model: TwoStages, x: Tensor) -> Entry:
    """Of the codes of images: their perplexity, and the bits of a code under the transformer and under their shares."""
    z = model.images.codes(x)
    found = perplexity(z, model.images.size)
    with torch.no_grad():
        nats = torch.cat([model.law.nats(part) for part in z.split(100)])
    return {
        "perplexity": found, "size": model.images.size, "bits_of_a_code": float(-nats.mean()) / z.shape[1] / LN2,
        "bits_by_share": math.log2(found),
    }  # fmt: skip


def reconstruction(reconstruct: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Root mean square error of x after the way into the latent and back; white - black is 2."""
    return float((reconstruct(x) - x).square().mean().sqrt())
