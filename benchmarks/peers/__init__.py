r"""A common interface to samplers of other libraries.

Every library has its own scaling of x, so a ``Task`` speaks in z = x / alpha and rho = sigma /
alpha, which all share: x_0 + rho eps. A peer starts at z_1 = x_1 / alpha(1), at the log-SNR of t =
1, and asks ``denoise(z, rho)`` at whatever level it believes to be at; that is converted to the
model's continuous time. So no peer suffers from the rounding of its times to those of a discrete
model. Each call is counted there.

A ``Config`` is one sampler with its settings. It runs in the largest number of steps that costs no
more than the given evaluations, and gives None where even one step is too much.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion import ScoreModel

# Where alpha(1) = 0 a peer starts here instead: their formulas divide by alpha.
_RHO_MAX = 4096.0
# Discrete-time models have so many times; rho at the first is where their grids end.
STEPS = 1000


class Task:
    """A batch of initial noise to be denoised.

    Args:
        model: the model to sample.
        x1: (B, ...) at t = 1.

    Attributes:
        x1: as given.
        z1: x_1 / alpha(1).
        rho_max: sigma / alpha at the start.
        rho_min: sigma / alpha at t = 1/1000.
        calls: evaluations so far.
    """

    def __init__(self, model: ScoreModel, x1: Tensor) -> None:
        alpha, sigma = (float(c) for c in model.sde(1.0)[:2])
        self.model, self.x1, self.calls = model, x1, 0
        self.rho_max = sigma / alpha if alpha * _RHO_MAX > sigma else _RHO_MAX
        self.rho_min = float((-model.sde.half_log_snr(1 / STEPS)).exp())
        self.z1 = x1 * (self.rho_max / sigma)

    def denoise(self, z: Tensor, rho: float) -> Tensor:
        """E[x_0 | x_0 + rho eps = z]: one evaluation."""
        self.calls += 1
        sde = self.model.sde
        t = sde.time(-math.log(rho)) if rho > 0 else torch.zeros((), dtype=torch.float64)
        return self.model.denoise(z * float(sde.alpha(t)), t.to(z.device).expand(len(z)))


@dataclass(frozen=True)
class Config:
    """One sampler with its settings.

    Attributes:
        library: whose.
        name: as printed.
        run: (task, evaluations) -> x_0, or None.
    """

    library: str
    name: str
    run: Callable[[Task, int], Tensor | None]

    def __str__(self) -> str:
        return f"{self.library}: {self.name}"


LIBRARIES = ("diffusers", "k_diffusion", "azula")


def peers(libraries: tuple[str, ...] = LIBRARIES) -> tuple[list[Config], dict[str, str]]:
    """All configurations of the libraries that are installed, and why the others are not there."""
    found: list[Config] = []
    missing: dict[str, str] = {}
    for name in libraries:
        try:
            found += importlib.import_module(f"benchmarks.peers.{name}_peer").configs()
        except ImportError as error:
            missing[name] = str(error)
    return found, missing
