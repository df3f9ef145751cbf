"""The app of `sdediff app`: one model, sampled live in a browser on this machine."""

from sde_diffusion.app.studio import Choice, Studio

__all__ = [
    "Choice",
    "Studio",
]
