r"""Process, parametrization and time input of a network, from a diffusers scheduler_config.json.

    betas      linear, scaled_linear, squaredcos_cap_v2, sigmoid, trained_betas; rescale_betas_zero_snr
    flow       x_t = (1 - t) x_0 + t eps and v = eps - x_0; the network receives num_train_timesteps t
    edm        x_t = x_0 + sigma eps, the preconditioning of Karras et al. 2022

Everything else in such a file (spacing, Karras sigmas, shift, order) chooses times or a solver, and is ours to choose:
the shift of a flow is a time grid, and no part of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.sde import DDPM, EDM, SDE, Flow
from solvers.errors import InputError, InputTypeError, NotFoundError, choose

FILE = "scheduler_config.json"
# Where a config leaves them out: these schedulers have other defaults than DDPM.
_LATE = (0.00085, 0.012)
_PREDICTS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "data"}


@dataclass(frozen=True)
class Schedule:
    """A network's process and convention.

    Attributes:
        sde: the forward process.
        predicts: the parametrization of the network's output, of ``PREDICTS``.
        steps: num_train_timesteps.
        sigma_data: standard deviation of the data of "edm".
        negated: whether the output has the other sign, as v_prediction of EDM schedulers.
    """

    sde: SDE
    predicts: str
    steps: int
    sigma_data: float = 1.0
    negated: bool = False

    def label(self, t: Tensor) -> Tensor:
        """The time input of the network at t (B,) float64."""
        if isinstance(self.sde, DDPM):
            return self.sde.timestep(t)
        return torch.log(self.sde.marginal(t)[1]) / 4 if isinstance(self.sde, EDM) else self.steps * t

    def time(self, label: Tensor) -> Tensor:
        """The t at which the network receives a label: the inverse of ``label``."""
        if isinstance(self.sde, EDM):
            return (torch.exp(4 * label) / self.sde.sigma_max).clamp_max(1)
        return (label + 1) / self.steps if isinstance(self.sde, DDPM) else label / self.steps


def config_of(scheduler: Any) -> dict[str, Any]:
    """The settings of a scheduler: an object, a dict, a folder or a scheduler_config.json.

    Raises:
        FileNotFoundError: no such file.
        TypeError: none of these.
        ValueError: a file that is no JSON object.
    """
    if isinstance(scheduler, str | os.PathLike):
        path = Path(scheduler)
        for place in (path / "scheduler" / FILE, path / FILE, path):
            if place.is_file():
                try:
                    found = json.loads(place.read_text())
                except ValueError as error:
                    raise InputError(f"{place} is no JSON: {error}") from None
                if not isinstance(found, dict):
                    raise InputError(f"{place} holds a {type(found).__name__}; expected the settings of a scheduler")
                return found
        raise NotFoundError(f"no {FILE} in {path}; save one with scheduler.save_pretrained({str(path)!r})")
    found = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if found is None:
        raise InputTypeError(
            f"expected a diffusers scheduler, its config, or a folder with {FILE}; got {type(scheduler).__name__}"
        )
    config = dict(found)
    config.setdefault("_class_name", type(scheduler).__name__)
    return config


def read_schedule(scheduler: Any) -> Schedule:
    """The schedule of a scheduler, its config, or its file.

    Raises:
        FileNotFoundError, TypeError: see ``config_of``.
        ValueError: a setting that is unknown, missing or makes no process.

    >>> read_schedule({"_class_name": "DDIMScheduler", "beta_schedule": "linear", "prediction_type": "v_prediction"})
    Schedule(sde=DDPM(...), predicts='velocity', steps=1000, sigma_data=1.0, negated=False)
    """
    config = config_of(scheduler)
    steps, process = config.get("num_train_timesteps", 1000), process_of(config)
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"num_train_timesteps is a whole number, at least 1; got {steps!r}")
    kind = config.get("prediction_type") or "epsilon"
    if process == "flow":
        return Schedule(Flow(), "velocity", steps)
    if process == "edm":
        high, data = config.get("sigma_max", 80.0), config.get("sigma_data", 0.5)
        choose(kind, {"epsilon": 0, "v_prediction": 1}, "prediction_type of an EDM scheduler")
        return Schedule(EDM(float(high)), "edm", steps, float(data), kind == "v_prediction")
    predicts = choose(kind, _PREDICTS, "prediction_type")
    betas = betas_of(config, getattr(scheduler, "betas", None))
    return Schedule(DDPM(betas=betas.tolist()), predicts, len(betas))


def process_of(config: Mapping[str, Any]) -> str:
    """Which of "betas", "flow" and "edm" a config is of: by its word, its class, or the settings that it has.

    >>> process_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}), process_of({"shift": 3.0})
    ('flow', 'flow')
    """
    if "process" in config:
        return choose(config["process"], {name: name for name in ("betas", "flow", "edm")}, "process")
    name, has_betas = str(config.get("_class_name", "")), "beta_start" in config
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction":
        return "flow"
    if name.startswith("EDM") or ("sigma_data" in config and not has_betas):
        return "edm"
    return "flow" if "shift" in config and not has_betas else "betas"


def betas_of(config: Mapping[str, Any], stated: Any = None) -> Tensor:
    """beta_1 to beta_T of a config, float64.

    Args:
        config: the settings.
        stated: the scheduler's own betas, for schedules that are not known by name.

    Raises:
        ValueError: an unknown schedule.

    >>> float(betas_of({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})[-1])
    0.012
    """
    steps = config.get("num_train_timesteps", 1000)
    usual = _LATE if str(config.get("_class_name", "")).startswith(("Heun", "KDPM2", "Karras")) else (1e-4, 0.02)
    start, end = config.get("beta_start", usual[0]), config.get("beta_end", usual[1])
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    elif name == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif name == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif name == "squaredcos_cap_v2":
        at = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        bar = torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
    elif name == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start
    elif isinstance(stated, Tensor):
        return stated.double().cpu()
    else:
        known = dict.fromkeys(("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
        choose(str(name), known, "beta_schedule")
    return zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose last is 1: sqrt(abar) is shifted to 0 at T and stretched back at 1 (Lin et al. 2024, algorithm 1).

    >>> zero_terminal_snr(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))[-1]
    tensor(1., dtype=torch.float64)
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
