"""Restoration of images: the tasks, the figures of a method, and simple baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.guidance import Blur, Downsample, Grey, Mask, Operator
from sde_diffusion.guidance.observations import inner

NETWORKS = Path(__file__).parent.parent / "networks"
RESULTS = Path(__file__).parent.parent / "results"
NOISE = 0.05


@dataclass(frozen=True)
class Problem:
    """One task: the operator, the true images, their observation, and the mean image of the training data."""

    name: str
    operator: Operator
    truth: Tensor
    y: Tensor
    mean: Tensor


def operators(shape: tuple[int, ...]) -> dict[str, Operator]:
    """The operators of the tasks by name, for images (C, H, W)."""
    _, height, width = shape
    lower = torch.ones(height, width, dtype=torch.bool)
    lower[height // 2 :] = False
    scattered = torch.rand(height, width, generator=torch.Generator().manual_seed(5)) < 0.5
    found: dict[str, Operator] = {
        "lower half hidden": Mask(lower),
        "4x super-resolution": Downsample(4),
        "deblurring": Blur.gaussian(1.5 * height / 28),
        "half of the pixels hidden": Mask(scattered),
    }
    if shape[0] == 3:
        found["grey to colour"] = Grey(3)
    return found


def first(problem: Problem, n: int) -> Problem:
    """The task on its first n images."""
    return replace(problem, truth=problem.truth[:n], y=problem.y[:n])


def problems(truth: Tensor, mean: Tensor) -> list[Problem]:
    """Every task on some images, observed with noise."""
    found = []
    for name, operator in operators(tuple(truth.shape[1:])).items():
        clean = operator(truth)
        y = clean + NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        found.append(Problem(name, operator, truth, operator(y) if isinstance(operator, Mask) else y, mean))
    return found


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """The PSNR of each image in [-1, 1], (B,)."""
    return 10 * torch.log10(4 / (x.clamp(-1, 1) - truth).square().flatten(1).mean(1).clamp_min(1e-12))


def baselines(problem: Problem) -> dict[str, Tensor]:
    """The mean image, behind what is seen where pixels are, and bilinear enlargement or the observation itself."""
    operator, y, mean = problem.operator, problem.y, problem.mean
    found = {"mean image": mean.expand_as(problem.truth)}
    if isinstance(operator, Downsample):
        found["bilinear"] = F.interpolate(y, mean.shape[2:], mode="bilinear", align_corners=False)
    elif isinstance(operator, Mask):
        found["observed, mean behind"] = torch.where(operator.visible, y, mean)
    else:
        found["observation"] = y.expand_as(problem.truth)
    return found


def figures(problem: Problem, draws: list[Tensor], other: Tensor) -> dict[str, Any]:
    """PSNR with its standard error, residual over the noise, diversity of two draws, and the share that is finite.

    Args:
        problem: the task.
        draws: samples of all images, one set for each seed; the PSNR of an image is the mean over the sets.
        other: further samples of the first images.
    """
    x = draws[0]
    finite = torch.stack(draws).flatten(2).isfinite().all(2).all(0)
    share = float(finite.double().mean())
    if not bool(finite.any()):
        return {**dict.fromkeys(("psnr", "psnr_error", "residual", "diversity"), math.nan), "finite": share}
    seen = problem.operator(torch.ones_like(problem.truth[:1])) != 0
    error = (problem.y[finite] - problem.operator(x[finite])) * seen
    value = torch.stack([psnr(some[finite], problem.truth[finite]) for some in draws]).mean(0)
    both = finite[: len(other)] & other.flatten(1).isfinite().all(1)
    return {
        "psnr": float(value.mean()),
        "psnr_error": float(value.std() / math.sqrt(len(value))) if len(value) > 1 else math.nan,
        "residual": float((inner(error, error).reshape(-1) / seen.sum()).sqrt().median()) / NOISE,
        "diversity": float((x[: len(other)] - other)[both].square().mean().sqrt()) / math.sqrt(2),
        "finite": share,
    }
