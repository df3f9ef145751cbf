"""Score-based diffusion models whose solver can be chosen, trusted and tuned.

    x_t = alpha(t) x_0 + sigma(t) eps,      dx = f(t) x dt + g(t) dw,      t = 0 data, t = 1 noise

A forward process (``sde``), a network read as its score (``score``), and the reverse-time SDE and
probability-flow ODE that ``solvers`` integrate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_diffusion.public import *

__all__ = [
    "DDPM",
    "EDM",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "DiscreteModel",
    "EmpiricalData",
    "FeatureStatistics",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Guided",
    "ScoreModel",
    "SubVPSDE",
    "bits_per_dim",
    "decode",
    "distill",
    "encode",
    "evaluate",
    "frechet_distance",
    "load",
    "load_solver",
    "log_likelihood",
    "sample",
    "save_solver",
    "train",
    "tune",
]


# A public name is imported when it is first asked for: ``sdediff --help`` needs none, and no torch.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sde_diffusion' has no attribute '{name}'")
    from sde_diffusion import public

    for exported in __all__:
        globals()[exported] = getattr(public, exported)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
