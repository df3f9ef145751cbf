"""ComfyUI nodes: every solver with fixed steps as a SAMPLER, and by name in the lists of the usual samplers.

A file ``custom_nodes/sdediff.py`` of ComfyUI with these two lines makes both available:

    from sde_diffusion.interop.comfyui_node import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register
    register()

Nothing of ComfyUI is imported before ``register`` or a node is called.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from sde_diffusion.interop.k_diffusion_sampler import sampler
from sde_diffusion.storage.solver_json import restore_solver
from solvers import SOLVERS
from solvers.errors import InputError, NotFoundError

PREFIX = "sdediff_"


def _names() -> list[str]:
    return [name for name, solver in SOLVERS.items() if not solver.adaptive]


class SdediffSampler:
    """A node that gives a SAMPLER for "SamplerCustom"."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The fields of the node."""
        return {
            "required": {
                "solver": (_names(), {"default": "pf-ode"}),
                "times": (["sigmas", "solver"], {"default": "sigmas"}),
                "eta": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 10.0, "step": 0.05}),
            }
        }

    def get_sampler(self, solver: str, times: str = "sigmas", eta: float = -1.0) -> tuple[Any]:
        """The sampler; a negative eta is the solver's usual one."""
        samplers = importlib.import_module("comfy.samplers")
        return (samplers.KSAMPLER(sampler(solver, times, None if eta < 0 else eta)),)


class SdediffTunedSampler:
    """A node that gives the SAMPLER of a solver that ``sdediff tune`` has stored."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The fields of the node."""
        return {"required": {"file": ("STRING", {"default": "tuned/nfe-8.json"})}}

    def get_sampler(self, file: str) -> tuple[Any]:
        """The sampler of a file that ``sdediff tune`` wrote; its own noise levels are used."""
        path = Path(file)
        if not path.is_file():
            raise NotFoundError(f"no tuned solver at {path}; make one with sdediff tune")
        try:
            entry = json.loads(path.read_text())["solver"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no file of sdediff tune: {error!r}") from None
        samplers = importlib.import_module("comfy.samplers")
        return (samplers.KSAMPLER(sampler(restore_solver(entry), "solver")),)


def register() -> list[str]:
    """Put every solver into ComfyUI's list of samplers, as sdediff_NAME; the names."""
    sampling = importlib.import_module("comfy.k_diffusion.sampling")
    samplers = importlib.import_module("comfy.samplers")
    added = []
    for name in _names():
        entry = PREFIX + name.replace("+", "p").replace("-", "_")
        setattr(sampling, f"sample_{entry}", sampler(name))
        for place in {id(names): names for names in (samplers.KSampler.SAMPLERS, samplers.SAMPLER_NAMES)}.values():
            if entry not in place:
                place.append(entry)
        added.append(entry)
    return added


NODE_CLASS_MAPPINGS = {"SdediffSampler": SdediffSampler, "SdediffTunedSampler": SdediffTunedSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"SdediffSampler": "sdediff solver", "SdediffTunedSampler": "sdediff tuned solver"}
