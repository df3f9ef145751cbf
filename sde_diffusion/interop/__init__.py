"""Networks of other libraries as score models, and solvers of this one in their pipelines.

Nothing here is imported by default, and no other library is imported before it is needed.
"""

from __future__ import annotations

from typing import Any

from sde_diffusion.interop.azula_denoiser import from_azula
from sde_diffusion.interop.conventions import from_denoiser, from_discrete, from_score_sde, from_velocity
from sde_diffusion.interop.diffusers_model import from_diffusers
from sde_diffusion.interop.k_diffusion_sampler import sampler
from solvers.errors import MissingPackageError

__all__ = [
    "Scheduler",
    "from_azula",
    "from_denoiser",
    "from_diffusers",
    "from_discrete",
    "from_score_sde",
    "from_velocity",
    "sampler",
]


def __getattr__(name: str) -> Any:
    if name != "Scheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sde_diffusion.interop.diffusers_scheduler import Scheduler
    except ImportError as error:
        raise MissingPackageError(f"Scheduler needs diffusers: pip install 'sdediff[diffusers]' ({error})") from None
    return Scheduler
