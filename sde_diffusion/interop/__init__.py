"""Networks of other libraries as score models, and solvers of this one in their pipelines.

Nothing here is imported by default, and no other library is imported before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sde_diffusion.interop.azula_denoiser import from_azula
from sde_diffusion.interop.conventions import from_denoiser, from_discrete, from_score_sde, from_velocity
from sde_diffusion.interop.diffusers_model import from_diffusers
from sde_diffusion.interop.k_diffusion_sampler import sampler
from solvers.errors import MissingPackageError

__all__ = [
    "HubModel",
    "Scheduler",
    "export_diffusers",
    "from_azula",
    "from_denoiser",
    "from_diffusers",
    "from_discrete",
    "from_score_sde",
    "from_velocity",
    "sampler",
]


# These need another library when they are used, and not before.
_LATER = {
    "Scheduler": ("diffusers_scheduler", "diffusers"),
    "export_diffusers": ("diffusers_export", "diffusers"),
    "HubModel": ("hub", "huggingface_hub"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, library = _LATER[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise MissingPackageError(f"{name} needs {library}: pip install 'sdediff[diffusers]' ({error})") from None
