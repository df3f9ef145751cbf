"""k-diffusion: its deterministic samplers on Karras and exponential grids.

Its state is z = x_0 + sigma eps. Where sigma_min is the user's to choose, several are offered; each
grid ends with a step to 0, except that of ``dpm_fast``, which ends at sigma_min.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.peers import Config, Task

_SIGMA_MIN = ("model", 0.03, 0.1)


def _append_dims(x: Tensor, ndim: int) -> Tensor:
    return x[(...,) + (None,) * (ndim - x.ndim)]


def _sampling() -> Any:
    """``k_diffusion.sampling`` alone: the package's import asks for torchvision and more."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ImportError("No module named 'k_diffusion'")
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = list(spec.submodule_search_locations or [])
        utils.append_dims = _append_dims  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def _no_noise(*_: Any) -> float:
    return 0.0


# name: (function, evaluations of n steps = a n + b, arguments)
_QUIET = {"eta": 0.0, "noise_sampler": _no_noise}
_SAMPLERS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "euler": ("sample_euler", 1, 0, {}),
    "heun": ("sample_heun", 2, -1, {}),
    "dpm_2": ("sample_dpm_2", 2, -1, {}),
    "lms-2": ("sample_lms", 1, 0, {"order": 2}),
    "lms-4": ("sample_lms", 1, 0, {}),
    "dpmpp_2s": ("sample_dpmpp_2s_ancestral", 2, -1, _QUIET),
    "dpmpp_sde eta=0": ("sample_dpmpp_sde", 2, -1, _QUIET),
    "dpmpp_2m": ("sample_dpmpp_2m", 1, 0, {}),
    "dpmpp_2m_sde eta=0 heun": ("sample_dpmpp_2m_sde", 1, 0, {**_QUIET, "solver_type": "heun"}),
    "dpmpp_3m_sde eta=0": ("sample_dpmpp_3m_sde", 1, 0, _QUIET),
}


def _run(name: str, grid: str, sigma_min: str | float, task: Task, nfe: int) -> Tensor | None:
    k = _sampling()
    low = task.rho_min if isinstance(sigma_min, str) else sigma_min

    def model(z: Tensor, sigma: Tensor) -> Tensor:
        return task.denoise(z, float(sigma[0]))

    if name == "dpm_fast":
        out: Tensor = k.sample_dpm_fast(model, task.z1, low, task.rho_max, nfe, disable=True)
        return out
    function, a, b, settings = _SAMPLERS[name]
    n = (nfe - b) // a
    if n < 1:
        return None
    sigmas = getattr(k, f"get_sigmas_{grid}")(n, low, task.rho_max).to(task.z1.dtype)
    sigmas[0] = task.rho_max
    out = getattr(k, function)(model, task.z1, sigmas, disable=True, **settings)
    return out


def configs() -> list[Config]:
    """All of them.

    Raises:
        ImportError: k-diffusion is not installed.
    """
    _sampling()
    out = []
    for low in _SIGMA_MIN:
        label = f"sigma_min={low}"
        out.append(Config("k-diffusion", f"dpm_fast {label}", partial(_run, "dpm_fast", "", low)))
        for name in _SAMPLERS:
            for grid in ("karras", "exponential"):
                run = partial(_run, name, grid, low)
                out.append(Config("k-diffusion", f"{name} {grid} {label}", run))
    return out
