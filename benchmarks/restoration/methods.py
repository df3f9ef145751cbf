"""The methods of this project as the benchmark runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sde_diffusion.guidance import METHODS, MomentMatching, Observed, PiGDM

OURS: dict[str, Callable[..., Observed]] = {
    **METHODS,
    "moment, 1 iteration": partial(MomentMatching, iterations=1),
    "pigdm, no range": lambda *given, clip: PiGDM(*given, clip=None),
    "moment, no range": lambda *given, clip: MomentMatching(*given, clip=None),
}
"""By name: model, operator, y, noise, clip -> the posterior's model."""
