r"""A network and its parametrization, as a score model.

With x_t = alpha x_0 + sigma eps known, each of these determines the others:

    noise     eps
    data      x_0
    velocity  v = a x_0 + b eps        (a, b) of the path; alpha eps - sigma x_0 by default
    score     s = -eps / sigma
    edm       x_0 = c_skip z + c_out F(c_in z, c_noise),  z = x / alpha,  rho = sigma / alpha,  d = sigma_data,
              c_skip = d^2 / (rho^2 + d^2),  c_out = rho d / sqrt(rho^2 + d^2),  c_in = 1 / sqrt(rho^2 + d^2),
              c_noise = log(rho) / 4                                   (Karras et al. 2022, eq. 7 and table 1)

Each is an affine map x_0 = p x + q output with p and q functions of t: ``_affine`` is the one conversion.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.data.normalization import IDENTITY, Normalization
from sde_diffusion.models.outputs import modules_in, tensor_of
from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import per_sample
from solvers.errors import InputError, InputTypeError, choose

PREDICTS = ("noise", "data", "velocity", "score", "edm")


class ScoreModel(nn.Module):
    """The score of the noised data, from a network with any parametrization.

    Args:
        network: (x, t) -> like x, or an object that holds it (``outputs.tensor_of``), with t (B,) in [0, 1] in the
            dtype of x ("edm": c_in z and c_noise instead).
        sde: the forward process.
        predicts: the parametrization of the network's output: noise, data, velocity, score or edm.
        shape: shape of one sample, so that sampling needs no other argument.
        sigma_data: standard deviation of the data, for "edm".
        cost: network passes in one evaluation (2 for a guided pair).
        normalization: units of the data against those of x_0 here, see below; None where they are not decided yet:
            ``train`` then measures them.

    The methods of a model and its reverse processes are in the units of the network, in which the data have about unit
    scale. ``sample``, ``log_likelihood``, ``encode`` and all else that takes or gives data convert by ``units``.

    Raises:
        ValueError: unknown parametrization, or the output's shape differs from the input's.

    >>> from sde_diffusion.sde import VPSDE
    >>> zero = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), predicts="noise")
    >>> zero.denoise(torch.ones(1, 2), torch.tensor([0.5]))  # x / alpha
    tensor([[3.5564, 3.5564]])
    """

    def __init__(
        self,
        network: Any,
        sde: SDE,
        predicts: str = "noise",
        shape: tuple[int, ...] | None = None,
        sigma_data: float = 1.0,
        cost: int = 1,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        self.predicts = choose(predicts, {p: p for p in PREDICTS}, "parametrization")
        if not isinstance(sde, SDE):
            raise InputTypeError(f"sde must be an SDE such as VPSDE(); got {type(sde).__name__}")
        if not sigma_data > 0:
            raise InputError(f"sigma_data is a standard deviation and must be positive; got {sigma_data}")
        self.network = network
        if not isinstance(network, nn.Module | None) and (found := modules_in(network)):
            # Device, dtype, eval() and to() reach a network that a function calls.
            self.within = nn.ModuleList(found)
        self.sde = sde
        self.shape = None if shape is None else tuple(shape)
        self.sigma_data = sigma_data
        self.cost = cost
        self.normalization = normalization
        if normalization is not None and self.shape is not None:
            normalization.check_shape(self.shape)
        self._pure_noise_at_1 = float(sde.marginal(1.0)[0]) == 0

    @property
    def units(self) -> Normalization:
        """The map between data and what the network sees; the identity where none is decided."""
        return IDENTITY if self.normalization is None else self.normalization

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's inputs at (x, t)."""
        if self.predicts == "edm":
            alpha, sigma = self.sde.marginal(t)
            c_in = 1 / torch.sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
            c_noise = torch.log(sigma / alpha) / 4
            return per_sample(c_in, x) * x, c_noise.to(x.dtype)
        return x, t.to(x.dtype)

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """The network's output at (x, t), and its variance channels if it has twice the channels of x.

        One evaluation.
        """
        arguments = self.arguments(x, t)
        low = self.low_precision()
        if low is None or x.dtype == low:
            out = tensor_of(self.network(*arguments, **condition))
        else:
            out = tensor_of(self.network(arguments[0].to(low), arguments[1], **condition)).to(x.dtype)
        if out.shape == x.shape:
            return out, None
        if out.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            first, second = out.chunk(2, dim=1)
            return first, second
        raise InputError(
            f"the network must return the shape of its input: x is {tuple(x.shape)}, the output is "
            f"{tuple(out.shape)} (twice the channels are understood as a learned variance)"
        )

    def low_precision(self) -> torch.dtype | None:
        """The dtype that x is cast to for the network alone: that of its weights, where they have 16 bits."""
        weight = next(self.parameters(), None)
        return weight.dtype if weight is not None and weight.dtype in (torch.bfloat16, torch.float16) else None

    def bind(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The conditions of a whole run before it is cut into batches, with what the model adds for each sample."""
        return condition

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The network's own output at (x, t): one evaluation."""
        return self.outputs(x, t, **condition)[0]

    def _affine(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of x_0 = p x + q output, float64."""
        alpha, sigma = self.sde.marginal(t)
        if self.predicts == "data":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        if self.predicts == "velocity":
            a, b = self.sde.velocity_weights(t)
            det = alpha * b - sigma * a
            return b / det, -sigma / det
        if self.predicts == "edm":
            n2 = sigma**2 + (self.sigma_data * alpha) ** 2
            return self.sigma_data**2 * alpha / n2, sigma * self.sigma_data / torch.sqrt(n2)
        if self._pure_noise_at_1 and alpha.device.type == "cpu" and bool((alpha == 0).any()):
            raise InputError(
                f"x_0 cannot be found from the {self.predicts} where alpha(t) = 0 (t = 1 of "
                f"{type(self.sde).__name__}); use predicts='velocity' or 'data', or a smaller t"
            )
        return 1 / alpha, -sigma / alpha if self.predicts == "noise" else sigma**2 / alpha

    def check_defined_at_pure_noise(self) -> None:
        """Refuse a process with alpha(1) = 0 for a network whose output does not determine x_0 there.

        Raises:
            ValueError: alpha(1) = 0 and the network predicts neither the velocity nor the data.
        """
        if self.predicts not in ("data", "velocity") and float(self.sde.marginal(1.0)[0]) == 0:
            raise InputError(
                f"{type(self.sde).__name__} has alpha(1) = 0: pure noise has no information on x_0, so a network that "
                f"predicts '{self.predicts}' cannot start there; use predicts='velocity' or 'data'"
            )

    def denoise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[x_0 | x_t = x].

        Args:
            x: (B, ...).
            t: (B,) in [0, 1].
            condition: passed on to the network.
        """
        return self.denoised_from(self.output(x, t, **condition), x, t)

    forward = denoise

    def denoised_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] from the network's output there: no evaluation."""
        shared = _shared(t)
        if shared is not None:
            known = _affine_at(self.predicts, self.sde, self.sigma_data, shared)
            return known[0] * x + known[1] * output
        p, q = self._affine(t)
        return per_sample(p, x) * x + per_sample(q, x) * output

    def output_for(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output that stands for E[x_0 | x_t = x] = x0: the inverse of ``denoised_from``."""
        p, q = self._affine(t)
        return (x0 - per_sample(p, x) * x) / per_sample(q, x)

    def noise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[eps | x_t = x] = (x - alpha x_0) / sigma; (B, ...) from x (B, ...) and t (B,)."""
        alpha, sigma = self.sde.marginal(t)
        if self.predicts == "noise":
            return self.output(x, t, **condition)
        p, q = self._affine(t)
        # Collected before the division: near t = 0 the terms in x cancel analytically, not in float32.
        return per_sample((1 - alpha * p) / sigma, x) * x - per_sample(alpha * q / sigma, x) * self.output(
            x, t, **condition
        )

    def score(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Grad log p_t(x) = -eps / sigma."""
        if self.predicts == "score":
            return self.output(x, t, **condition)
        return self.noise(x, t, **condition) * per_sample(-1 / self.sde.marginal(t)[1], x)

    def velocity(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[v | x_t = x], v = a x_0 + b eps with the weights of the path."""
        if self.predicts == "velocity":
            return self.output(x, t, **condition)
        alpha, sigma = self.sde.marginal(t)
        a, b = self.sde.velocity_weights(t)
        p, q = self._affine(t)
        slope = a - alpha / sigma * b
        return per_sample(slope * p + b / sigma, x) * x + per_sample(slope * q, x) * self.output(x, t, **condition)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target of the network's output for x_t = alpha x_0 + sigma eps.

        Regression on it with the weight of the noise error times ``output_gain(t)**2`` is denoising score
        matching in every parametrization.
        """
        alpha, sigma = self.sde.marginal(t)
        if self.predicts == "noise":
            return eps
        if self.predicts == "data":
            return x0
        if self.predicts == "score":
            return per_sample(-1 / sigma, x0) * eps
        if self.predicts == "velocity":
            a, b = self.sde.velocity_weights(t)
            return per_sample(a, x0) * x0 + per_sample(b, x0) * eps
        # F = (x_0 - p x_t) / q with the terms in x_0 collected: 1 - p alpha = sigma^2 / n^2.
        n = torch.sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
        return per_sample(sigma / (n * self.sigma_data), x0) * x0 - per_sample(self.sigma_data * alpha / n, x0) * eps

    def output_gain(self, t: Tensor) -> Tensor:
        """|d eps / d output|: the factor from an error of the output to an error of the noise (float64).

        >>> from sde_diffusion.sde import VPSDE
        >>> ScoreModel(None, VPSDE(), "noise").output_gain(torch.tensor([0.5]))
        tensor([1.], dtype=torch.float64)
        """
        alpha, sigma = self.sde.marginal(t)
        if self.predicts == "noise":
            return torch.ones_like(alpha)
        if self.predicts == "score":
            return sigma
        _, q = self._affine(t)
        return (alpha * q / sigma).abs()


def _shared(t: Tensor) -> float | None:
    """The time of the whole batch, if it is one and reading it does not wait for a device."""
    if t.device.type != "cpu" or t.numel() == 0 or t.requires_grad or torch.compiler.is_compiling():
        return None
    low, high = (float(end) for end in t.aminmax())
    return low if low == high else None


@lru_cache(maxsize=4096)
def _affine_at(predicts: str, sde: SDE, sigma_data: float, t: float) -> tuple[float, float]:
    """(p, q) at one time; cached, since twenty operations on small tensors show next to a small network."""
    p, q = ScoreModel(None, sde, predicts, sigma_data=sigma_data)._affine(
        torch.tensor(t, dtype=torch.float64, device="cpu")
    )
    return float(p), float(q)
