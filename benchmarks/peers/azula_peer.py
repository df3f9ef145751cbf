"""azula: its deterministic samplers on each of its noise schedules.

Times are uniform, so the schedule is the grid. Its alpha_min (or sigma_max) is set so that t = 1 is
at the log-SNR of the start; its sigma_min is where a run ends. The last evaluation is one step
before.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Config, Task

_SIGMA_MIN = (1e-3, 1e-2)
_SCHEDULES = ("VP", "Cosine", "Rectified", "VE", "Decay")
# name: (evaluations of a step, order)
_SAMPLERS: dict[str, tuple[int, int | None]] = {
    "Euler": (1, None),
    "Heun": (2, None),
    **{f"{kind}-{n}": (1, n) for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB") for n in (2, 3)},
}


def _schedule(name: str, rho_max: float, sigma_min: float) -> Any:
    from azula import noise

    kind = getattr(noise, f"{name}Schedule")
    if name == "VE":
        return kind(sigma_min=sigma_min, sigma_max=rho_max)
    preserving = name in ("VP", "Cosine")
    alpha_min = math.sqrt((1 + sigma_min**2) / (1 + rho_max**2)) if preserving else 1 / rho_max
    return kind(alpha_min=alpha_min, sigma_min=sigma_min)


def _run(name: str, schedule_name: str, sigma_min: float, task: Task, nfe: int) -> Tensor | None:
    from azula import sample
    from azula.denoise import Denoiser, DiracPosterior

    cost, order = _SAMPLERS[name]
    if nfe < cost:
        return None

    class Exact(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = _schedule(schedule_name, task.rho_max, sigma_min)

        def forward(self, x: Tensor, t: Tensor) -> Any:
            alpha, sigma = (float(c) for c in self.schedule(t))
            return DiracPosterior(task.denoise(x / alpha, sigma / alpha))

    denoiser = Exact()
    settings = {} if order is None else {"order": order}
    sampler = getattr(sample, f"{name.split('-')[0]}Sampler")(
        denoiser, steps=nfe // cost, silent=True, dtype=torch.float64, **settings
    )
    first, last = (float(denoiser.schedule(t)[0]) for t in sampler.timesteps[[0, -1]])
    # Its scales are tensors, and would promote a float32 x where they are not 0-d.
    x: Tensor = sampler(task.z1 * first) / last
    return x.to(task.z1.dtype)


def configs() -> list[Config]:
    """All of them.

    Raises:
        ImportError: azula is not installed.
    """
    import azula  # noqa: F401

    return [
        Config("azula", f"{name} {schedule} sigma_min={low:g}", partial(_run, name, schedule, low))
        for name in _SAMPLERS
        for schedule in _SCHEDULES
        for low in _SIGMA_MIN
    ]
