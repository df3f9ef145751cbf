"""Solvers compared on one model: by error, by distance to data, and for a tolerance."""

from sde_diffusion.comparison.comparison import Comparison, compare

__all__ = [
    "Comparison",
    "compare",
]
