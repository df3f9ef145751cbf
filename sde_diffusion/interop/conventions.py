r"""Networks of other code bases, by their calling convention.

    from_denoiser    D(x, sigma)         EDM, EDM2, k-diffusion                     x_t = x_0 + sigma eps
    from_velocity    v(x, t) or v(t, x)  flow_matching, torchcfm, SD3-style         x_t = (1 - t) x_0 + t eps
    from_discrete    eps(x, i)           guided-, improved-diffusion, DDPM codes    the betas
    from_score_sde   eps(x, 999 t) or s(x, sigma)   score_sde (Song et al. 2021)    VP, sub-VP, VE

Noise levels below the smallest one of its training are replaced by that level.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sde_diffusion.interop.foreign import ForeignModel, ForeignNetwork
from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, Flow, SubVPSDE
from sde_diffusion.sde.ddpm import SCHEDULES
from solvers.errors import InputError, choose

Shape = tuple[int, ...] | None


class SigmaNetwork(ForeignNetwork):
    """A network that receives sigma, never less than ``sigma_min``."""

    def __init__(self, network: Any, sde: SDE, sigma_min: float) -> None:
        super().__init__(network)
        self.sde, self.sigma_min = sde, sigma_min

    def label(self, t: Tensor) -> Tensor:
        """Sigma at t."""
        return self.sde.marginal(t)[1].clamp_min(self.sigma_min)

    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """network(x, sigma)."""
        return self.network(x, label, **condition)


class ScaledTimeNetwork(ForeignNetwork):
    """A network that receives a multiple of t, never less than that of ``t_min``."""

    def __init__(self, network: Any, scale: float, t_min: float) -> None:
        super().__init__(network)
        self.scale, self.t_min = scale, t_min

    def label(self, t: Tensor) -> Tensor:
        """Scale times t."""
        return self.scale * t.clamp_min(self.t_min)

    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """network(x, scale t)."""
        return self.network(x, label, **condition)


class VelocityNetwork(ForeignNetwork):
    """A velocity field whose time may run from noise to data, and may come first."""

    def __init__(self, network: Any, backwards: bool, scale: float, time_first: bool) -> None:
        super().__init__(network)
        self.backwards, self.scale, self.time_first = backwards, scale, time_first

    def label(self, t: Tensor) -> Tensor:
        """1 - t or t, times the scale."""
        return self.scale * (1 - t if self.backwards else t)

    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """The velocity towards the noise."""
        arguments = (label, x) if self.time_first else (x, label)
        answer = self.network(*arguments, **condition)
        return -answer if self.backwards else answer


def _attribute(network: Any, name: str) -> float | None:
    """A noise level that the network states, where it is a finite positive number."""
    value = getattr(network, name, None)
    try:
        value = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return value if value is not None and 0 < value < math.inf else None


def _shape(network: Any, shape: Shape) -> Shape:
    """The shape given, or that which an EDM network states."""
    channels, size = getattr(network, "img_channels", None), getattr(network, "img_resolution", None)
    if shape is None and isinstance(channels, int) and isinstance(size, int):
        return channels, size, size
    return shape


def from_denoiser(
    network: Any, sigma_min: float | None = None, sigma_max: float | None = None, shape: Shape = None
) -> ScoreModel:
    """The score model of a denoiser D(x, sigma) = E[x_0 | x_0 + sigma eps = x]: EDM, EDM2, k-diffusion.

    Args:
        network: (x, sigma) -> D, with sigma (B,).
        sigma_min: the smallest sigma that it knows; its own attribute, or 0.002.
        sigma_max: the largest; its own attribute where that is finite, or 80.
        shape: shape of one sample; that of an EDM network is known.

    Raises:
        ValueError: not 0 <= sigma_min < sigma_max.

    >>> model = from_denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sigma_max=10.0)  # data of variance 1
    >>> import torch
    >>> model.denoise(torch.ones(1, 2), torch.tensor([0.1]))
    tensor([[0.5000, 0.5000]])
    """
    low = _attribute(network, "sigma_min") if sigma_min is None else sigma_min
    high = _attribute(network, "sigma_max") if sigma_max is None else sigma_max
    low, high = 0.002 if low is None else low, 80.0 if high is None else high
    if not 0 <= low < high < math.inf:
        raise InputError(f"expected 0 <= sigma_min < sigma_max; got sigma_min={low}, sigma_max={high}")
    sde = EDM(high)
    return ForeignModel(SigmaNetwork(network, sde, low), sde, "data", _shape(network, shape))


def from_velocity(
    network: Any, time: str = "reversed", shape: Shape = None, *, scale: float = 1.0, time_first: bool | None = None
) -> ScoreModel:
    """The score model of a velocity field of the straight path: flow_matching, torchcfm, rectified flow.

    Where noise and data were paired by optimal transport the probability-flow ODE is right, but the score, and with it
    every stochastic solver, is not: the pairs are no longer independent.

    Args:
        network: v(x, t) or v(t, x), with t (B,).
        time: "reversed" where t = 0 is noise and v = x_0 - eps (flow_matching, torchcfm); "forward" where t = 1 is
            noise and v = eps - x_0 (SD3, Flux, rectified flow in diffusers).
        shape: shape of one sample.
        scale: factor of t before the network receives it, such as 1000.
        time_first: whether t is the first argument; seen in the names of its arguments by default.

    Raises:
        ValueError: another word for time.

    >>> import torch
    >>> model = from_velocity(lambda t, x: -x / (1 - t[:, None]))  # all data at 0: v = -eps with x = (1 - t) eps
    >>> model.denoise(torch.ones(1, 1), torch.tensor([0.25])).abs()
    tensor([[0.]])
    """
    backwards = choose(time, {"reversed": True, "forward": False}, "direction of time")
    first = _time_first(network) if time_first is None else time_first
    return ForeignModel(VelocityNetwork(network, backwards, scale, first), Flow(), "velocity", shape)


def _time_first(network: Any) -> bool:
    """Whether the first argument of a network has the name of a time."""
    try:
        names = list(inspect.signature(getattr(network, "forward", network)).parameters)
    except (TypeError, ValueError):
        return False
    return bool(names) and names[0].lower() in ("t", "time", "times", "timestep", "timesteps")


def from_discrete(
    network: Any,
    betas: str | Sequence[float] | Tensor = "linear",
    predicts: str = "noise",
    shape: Shape = None,
    rounded: bool = True,
) -> ScoreModel:
    """The score model of a network of discrete steps: guided-diffusion, improved-diffusion, other DDPM codes.

    Args:
        network: (x, i) -> like x, or with twice the channels (a learned variance); i is 0 to T - 1.
        betas: beta_1 to beta_T, or "linear" or "cosine" for 1000 steps.
        predicts: "noise", "data" or "velocity".
        shape: shape of one sample.
        rounded: ask at whole i; False passes fractions.

    Raises:
        ValueError: an unknown name, betas outside (0, 1).

    >>> import torch
    >>> model = from_discrete(lambda x, i: torch.zeros_like(x), "cosine")
    >>> model.sde.steps
    1000
    """
    if isinstance(betas, str):
        values = choose(betas, SCHEDULES, "beta schedule")(1000).tolist()
    else:
        values = [float(beta) for beta in betas]
    return DiscreteModel(network, DDPM(betas=values), predicts, shape, rounded)


def from_score_sde(
    network: Any,
    kind: str = "vp",
    shape: Shape = None,
    *,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    t_min: float = 1e-5,
) -> ScoreModel:
    """The score model of a continuous-time network of score_sde (Song et al. 2021).

    VP and sub-VP networks receive 999 t and predict the noise; VE networks receive sigma and predict the score. The
    process of the VE code starts at sigma_min, ours at 0: below sigma_min its networks receive sigma_min.

    Args:
        network: (x, label) -> like x.
        kind: "vp", "subvp" or "ve".
        shape: shape of one sample.
        beta_min: beta at t = 0 of VP and sub-VP.
        beta_max: beta at t = 1 of VP and sub-VP.
        sigma_min: smallest sigma of VE.
        sigma_max: largest sigma of VE.
        t_min: the smallest time that a VP or sub-VP network has seen.

    Raises:
        ValueError: an unknown kind, or settings that make no process.

    >>> import torch
    >>> told = []
    >>> model = from_score_sde(lambda x, label: told.append(label) or torch.zeros_like(x), "ve")
    >>> _ = model.denoise(torch.zeros(2, 1), torch.tensor([0.0, 1.0], dtype=torch.float64))
    >>> [round(float(label), 2) for label in told[0]]
    [0.01, 50.0]
    """
    if choose(kind, {"vp": False, "subvp": False, "ve": True}, "kind of process"):
        sde = VESDE(sigma_min, sigma_max)
        return ForeignModel(SigmaNetwork(network, sde, sigma_min), sde, "score", shape)
    process = (VPSDE if kind == "vp" else SubVPSDE)(beta_min, beta_max)
    return ForeignModel(ScaledTimeNetwork(network, 999.0, t_min), process, "noise", shape)
