r"""A model of this package as a pipeline folder of diffusers, so that its pipelines and schedulers run on it.

The network is stored as it is, in a diffusers model class of this package (``ExportedNetwork``): its architecture is
not that of ``UNet2DModel``, so the folder is read where this package is installed. The process becomes a scheduler:

    VP, sub-VP excluded, cosine, DDPM    betas that meet alpha at t = i / T exactly, i = 1, ..., T
    straight path                        FlowMatchEulerDiscreteScheduler

A variance-exploding process has no scheduler with betas; those models are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import DDPM, SDE, VPSDE, CosineVPSDE, Flow
from sde_diffusion.storage.atomic_folder import require_new
from sde_diffusion.storage.checkpoint import describe_model
from solvers.errors import InputError, choose

_PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}


class ExportedNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A network of ``sde_diffusion.networks`` as a model of diffusers: (sample, timestep) -> like sample.

    Args:
        name: of the network in ``NETWORKS``.
        settings: with which it was built, as JSON.
        in_channels: of a sample.
        sample_size: height and width of a sample.
        steps: of the scheduler; the network receives t = (timestep + 1) / steps.
        index: whether the network itself receives the timestep.
        flow: whether it receives t = timestep / steps.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        name: str,
        settings: str,
        in_channels: int = 1,
        sample_size: Any = 8,
        steps: int = 1000,
        index: bool = False,
        flow: bool = False,
    ) -> None:
        super().__init__()
        self.network = build(name, **json.loads(settings))

    def forward(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """The network's output at a timestep, 0-d or one for each sample."""
        steps = self.config.steps
        label = torch.as_tensor(timestep, device=sample.device).double().reshape(-1).expand(len(sample))
        if self.config.index:
            t = label.round().long()
        else:
            t = (label / steps if self.config.flow else (label + 1) / steps).to(sample.dtype)
        condition = {} if class_labels is None else {"label": class_labels}
        out = self.network(sample, t, **condition)
        return UNet2DOutput(sample=out) if return_dict else (out,)


def betas_for(sde: SDE, steps: int = 1000) -> Tensor:
    """Betas whose sqrt(abar_i) is alpha(i / steps): (steps,) float64.

    Raises:
        ValueError: a process whose variance is not 1 - alpha^2.

    >>> bool(torch.allclose(betas_for(DDPM()), DDPM().beta_i()))
    True
    """
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha, sigma = sde.marginal(t)
    if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-6):
        raise InputError(
            f"{type(sde).__name__} is not variance-preserving, so no scheduler with betas stands for it; diffusers "
            f"runs "
            "models on VP, cosine, DDPM and straight paths"
        )
    bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return (1 - bar[1:] / bar[:-1]).clamp(1e-12, 0.999999)


def export_diffusers(model: ScoreModel, folder: str | Path, steps: int = 1000) -> Path:
    """Write a DDPMPipeline of a model: ``DDPMPipeline.from_pretrained(folder)`` and ``from_diffusers(folder)`` read it.

    Args:
        model: images of one size, on a network of this package, that predicts noise, velocity or data.
        folder: new or empty.
        steps: T of the scheduler's betas; those of a DDPM process are its own.

    Raises:
        ValueError: a process, parametrization, shape or network that diffusers cannot hold.
        FileExistsError: the folder has something in it.

    Returns:
        The folder.
    """
    folder = Path(folder)
    require_new(folder)
    entry = describe_model(model)
    name, settings = entry["network"]["name"], entry["network"]["settings"]
    if name is None or model.shape is None or len(model.shape) != 3:
        raise InputError(
            f"diffusers takes images of one size from a network of sde_diffusion.networks; this is a "
            f"{type(model.network).__name__} for samples of shape {model.shape}"
        )
    flow = isinstance(model.sde, Flow)
    steps = model.sde.steps if isinstance(model.sde, DDPM) else steps
    scheduler = _scheduler(model, steps, flow)
    network = ExportedNetwork(
        name=name,
        settings=json.dumps(settings),
        in_channels=model.shape[0],
        sample_size=list(model.shape[1:]),
        steps=steps,
        index=isinstance(model, DiscreteModel),
        flow=flow,
    )
    network.network.load_state_dict(model.network.state_dict())
    DDPMPipeline(network.eval(), scheduler).save_pretrained(str(folder), safe_serialization=True)
    return folder


def _scheduler(model: ScoreModel, steps: int, flow: bool) -> Any:
    """The scheduler of diffusers that stands for a process and a parametrization."""
    if flow:
        choose(model.predicts, {"velocity": 0}, "prediction of a flow in diffusers")
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    prediction = choose(model.predicts, _PREDICTIONS, "prediction in diffusers")
    if model.predicts == "velocity" and not isinstance(model.sde, VPSDE | CosineVPSDE | DDPM):
        raise InputError(f"the velocity of {type(model.sde).__name__} is not v_prediction")
    betas = betas_for(model.sde, steps).tolist()
    settings: Mapping[str, Any] = {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    return DDIMScheduler(num_train_timesteps=steps, trained_betas=betas, prediction_type=prediction, **settings)
