"""Networks of other libraries as score models, and solvers of this one in their pipelines.

Nothing here is imported by default, and no other library is imported before it is needed.
"""

from __future__ import annotations

from sde_diffusion.interop.azula_denoiser import from_azula
from sde_diffusion.interop.conventions import from_denoiser, from_discrete, from_score_sde, from_velocity
from sde_diffusion.interop.diffusers_model import from_diffusers

__all__ = [
    "from_azula",
    "from_denoiser",
    "from_diffusers",
    "from_discrete",
    "from_score_sde",
    "from_velocity",
]
