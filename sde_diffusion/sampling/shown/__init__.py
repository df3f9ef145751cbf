"""Figures of runs: samples side by side, films of the reverse process, figures of a model."""

from sde_diffusion.sampling.shown.same_noise import same_noise_gallery, time_grids

__all__ = [
    "same_noise_gallery",
    "time_grids",
]
