r"""Parametrizations of the score: six targets of a network, each an affine function of the others.

With x_t = alpha x_0 + sigma eps known, each of these determines the others:

    noise     eps
    data      x_0
    velocity  v = a x_0 + b eps        (a, b) of the path; alpha eps - sigma x_0 unless it says otherwise
    score     s = -eps / sigma
    edm       x_0 = c_skip z + c_out F(c_in z, c_noise),  z = x / alpha,  rho = sigma / alpha,  d = sigma_data,
              c_skip = d^2 / (rho^2 + d^2),  c_out = rho d / sqrt(rho^2 + d^2),  c_in = 1 / sqrt(rho^2 + d^2),
              c_noise = log(rho) / 4                                   (Karras et al. 2022, eq. 7 and table 1)
    mean      mu~, the mean of q(x_s | x_t, x_0) one step of DDPM before t            (Ho et al. 2020, eq. 7)

Each is an affine map x_0 = p x + q output with p and q functions of t (``affine``). What is derived from it, the noise
(x - alpha x_0) / sigma, the score and the velocity, is the output itself where the network predicts that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError, choose


@dataclass(frozen=True)
class Parametrization(ABC):
    """The inputs and the target of a network, and x_0 as a function of its output.

    A new one needs ``affine`` and ``target``. Times t are (B,) or 0-d; coefficients are float64.

    Attributes:
        name: how messages and checkpoints call it.
        defined_at_pure_noise: whether x_0 is found from the output where alpha(t) = 0.
    """

    name: ClassVar[str] = "custom"
    defined_at_pure_noise: ClassVar[bool] = False

    def input(self, sde: SDE, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the network at (x, t): by default x, and t in the dtype of x."""
        return x, t.to(x.dtype)

    @abstractmethod
    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of x_0 = p x + q output."""

    @abstractmethod
    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target of the output for x_t = alpha x_0 + sigma eps, like x0."""

    def gain(self, sde: SDE, t: Tensor) -> Tensor:
        """|d eps / d output|: the factor from an error of the output to an error of the noise."""
        alpha, sigma = sde.marginal(t)
        return (alpha * self.affine(sde, t)[1] / sigma).abs()

    def noise(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t = x] from the output."""
        alpha, sigma = sde.marginal(t)
        p, q = self.affine(sde, t)
        # Collected before the division: near t = 0 the terms in x cancel analytically, not in float32.
        return per_sample((1 - alpha * p) / sigma, x) * x - per_sample(alpha * q / sigma, x) * output

    def score(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Grad log p_t(x) = -eps / sigma from the output."""
        return self.noise(sde, output, x, t) * per_sample(-1 / sde.marginal(t)[1], x)

    def velocity(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[v | x_t = x], v = a x_0 + b eps, from the output."""
        alpha, sigma = sde.marginal(t)
        a, b = sde.velocity_weights(t)
        p, q = self.affine(sde, t)
        slope = a - alpha / sigma * b
        return per_sample(slope * p + b / sigma, x) * x + per_sample(slope * q, x) * output


@dataclass(frozen=True)
class NoisePrediction(Parametrization):
    """The output is eps.

    >>> from sde_diffusion.sde import VPSDE
    >>> NoisePrediction().gain(VPSDE(), torch.tensor([0.5]))
    tensor([1.], dtype=torch.float64)
    """

    name = "noise"

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 = (x - sigma eps) / alpha."""
        alpha, sigma = sde.marginal(t)
        return 1 / alpha, -sigma / alpha

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Eps."""
        return eps

    def gain(self, sde: SDE, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sde.marginal(t)[0])

    def noise(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The output."""
        return output


@dataclass(frozen=True)
class DataPrediction(Parametrization):
    """The output is x_0."""

    name = "data"
    defined_at_pure_noise = True

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 is the output."""
        alpha, _ = sde.marginal(t)
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0."""
        return x0


@dataclass(frozen=True)
class VelocityPrediction(Parametrization):
    """The output is v = a x_0 + b eps with the weights of the path."""

    name = "velocity"
    defined_at_pure_noise = True

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 = (b x - sigma v) / (alpha b - sigma a)."""
        alpha, sigma = sde.marginal(t)
        a, b = sde.velocity_weights(t)
        det = alpha * b - sigma * a
        return b / det, -sigma / det

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """A x_0 + b eps."""
        a, b = sde.velocity_weights(t)
        return per_sample(a, x0) * x0 + per_sample(b, x0) * eps

    def velocity(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The output."""
        return output


@dataclass(frozen=True)
class ScorePrediction(Parametrization):
    """The output is the score, -eps / sigma."""

    name = "score"

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 = (x + sigma^2 s) / alpha."""
        alpha, sigma = sde.marginal(t)
        return 1 / alpha, sigma**2 / alpha

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """-eps / sigma."""
        return per_sample(-1 / sde.marginal(t)[1], x0) * eps

    def gain(self, sde: SDE, t: Tensor) -> Tensor:
        """Sigma."""
        return sde.marginal(t)[1]

    def score(self, sde: SDE, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The output."""
        return output


@dataclass(frozen=True)
class EDMPrediction(Parametrization):
    """The output is F of Karras et al. 2022, and the network receives c_in z and c_noise.

    Args:
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: sigma_data is not positive.
    """

    sigma_data: float = 1.0

    name = "edm"

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data is a standard deviation and must be positive; got {self.sigma_data}")

    def input(self, sde: SDE, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in z, and c_noise in the dtype of x."""
        alpha, sigma = sde.marginal(t)
        c_in = 1 / torch.sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
        c_noise = torch.log(sigma / alpha) / 4
        return per_sample(c_in, x) * x, c_noise.to(x.dtype)

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, in terms of x."""
        alpha, sigma = sde.marginal(t)
        n2 = sigma**2 + (self.sigma_data * alpha) ** 2
        return self.sigma_data**2 * alpha / n2, sigma * self.sigma_data / torch.sqrt(n2)

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """F = (x_0 - p x_t) / q with the terms in x_0 collected: 1 - p alpha = sigma^2 / n^2."""
        alpha, sigma = sde.marginal(t)
        n = torch.sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
        return per_sample(sigma / (n * self.sigma_data), x0) * x0 - per_sample(self.sigma_data * alpha / n, x0) * eps


@dataclass(frozen=True)
class MeanPrediction(Parametrization):
    """The output is mu~, the mean of q(x_s | x_t, x_0) of a step of DDPM (Ho et al. 2020, eq. 7), s = t - 1 / T.

    Args:
        steps: T; that of the process where it has steps, else 1000.

    >>> from sde_diffusion.sde import DDPM
    >>> first = torch.tensor([1e-3])  # the first step ends at x_0
    >>> MeanPrediction().target(DDPM(), torch.ones(1, 1), torch.ones(1, 1), first)
    tensor([[1.]])
    """

    steps: int | None = None

    name = "mean"
    defined_at_pure_noise = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a process has 1 step or more; got {self.steps}")

    def _weights(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """(c_0, c_x) of mu~ = c_0 x_0 + c_x x_t, for the step from t."""
        steps: int = self.steps or getattr(sde, "steps", None) or 1000
        t = t.double()
        (alpha, sigma), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal((t - 1 / steps).clamp_min(0))
        kept = alpha / alpha_s * (sigma_s / sigma) ** 2
        return alpha_s - alpha * kept, kept

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 = (mu~ - c_x x) / c_0."""
        data, kept = self._weights(sde, t)
        return -kept / data, 1 / data

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """c_0 x_0 + c_x x_t."""
        data, kept = self._weights(sde, t)
        alpha, sigma = sde.marginal(t)
        return per_sample(data + kept * alpha, x0) * x0 + per_sample(kept * sigma, x0) * eps


class WithoutScore(Parametrization):
    """The output of a network that shares the format of score models and determines no x_0.

    Attributes:
        refusal: the message of every use as a score model.
    """

    defined_at_pure_noise = True
    refusal: ClassVar[str]

    def refuse(self) -> NoReturn:
        """Raise an InputError with the message."""
        raise InputError(self.refusal)

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """Refused."""
        self.refuse()

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Refused."""
        self.refuse()


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    kind.name: kind
    for kind in (NoisePrediction, DataPrediction, VelocityPrediction, ScorePrediction, EDMPrediction, MeanPrediction)
}
"""The parametrizations by name."""


def parametrization_of(predicts: str | Parametrization, sigma_data: float = 1.0) -> Parametrization:
    """The parametrization of this name; an instance is returned unchanged.

    Args:
        predicts: a name in ``PARAMETRIZATIONS``, or a Parametrization.
        sigma_data: of "edm".

    Raises:
        ValueError: an unknown name.

    >>> parametrization_of("edm", 0.5)
    EDMPrediction(sigma_data=0.5)
    """
    if isinstance(predicts, Parametrization):
        return predicts
    kind = choose(predicts, PARAMETRIZATIONS, "parametrization")
    return kind(sigma_data) if kind is EDMPrediction else kind()
