"""Solvers compared on one model: by error, by distance to data, and for a tolerance."""

from sde_diffusion.comparison.comparison import compare
from sde_diffusion.comparison.result import Comparison

__all__ = [
    "Comparison",
    "compare",
]
