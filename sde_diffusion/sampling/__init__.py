"""From a model, a solver and an NFE to samples; reference solutions and inversion."""

from sde_diffusion.sampling.editing import edit, transport
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.restoration import Restoration, restore
from sde_diffusion.sampling.sampler import sample

__all__ = [
    "Restoration",
    "decode",
    "edit",
    "encode",
    "restore",
    "sample",
    "transport",
]
