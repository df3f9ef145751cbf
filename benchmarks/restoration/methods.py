"""The methods of this project as the benchmark runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sde_diffusion.guidance import METHODS, MomentMatching, Observed

OURS: dict[str, Callable[..., Observed]] = {
    **METHODS,
    "moment, 1 iteration": partial(MomentMatching, iterations=1),
}
"""By name: model, operator, y, noise, clip -> the posterior's model."""
