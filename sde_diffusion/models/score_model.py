"""A network and its parametrization, as a score model.

The network's output stands for x_0, the noise, the velocity or the score (``models.parametrization``). A score model
turns each into the others: x_0 = p x + q output with p and q functions of t is the one conversion.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sde_diffusion.data.normalization import IDENTITY, Normalization
from sde_diffusion.models.outputs import modules_in, tensor_of
from sde_diffusion.models.parametrization import (
    PARAMETRIZATIONS,
    DataPrediction,
    EDMPrediction,
    Parametrization,
    parametrization_of,
)
from sde_diffusion.report.process_figures import schedule_figure
from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import per_sample
from solvers.display.displayed import Displayed, finished
from solvers.display.result_table import ResultTable
from solvers.errors import InputError, InputTypeError
from solvers.problem import LearnedVariance
from solvers.solver import Solver


class Decoder(Protocol):
    """What a latent model needs of its autoencoder, an ``AutoencoderModel``."""

    shape: tuple[int, ...] | None

    def encode(self, x: Tensor) -> Tensor:
        """Latents of samples."""

    def decode(self, z: Tensor) -> Tensor:
        """Samples of latents."""

    def to(self, device: torch.device) -> Any:
        """The autoencoder on a device."""


PREDICTS = tuple(PARAMETRIZATIONS)
_KNOWN = 4096  # times whose (p, q) are kept


class ScoreModel(Displayed, nn.Module):
    """The score of the noised data, from a network of any parametrization.

    Args:
        network: (x, t) -> like x, or an object that holds it (``outputs.tensor_of``), with t (B,) in [0, 1] in the
            dtype of x ("edm": c_in z and c_noise instead).
        sde: the forward process.
        predicts: the parametrization of the network's output: noise, data, velocity, score, edm or mean, or a
            ``Parametrization`` of one's own.
        shape: shape of one sample, so that sampling needs no other argument.
        sigma_data: standard deviation of the data, for "edm".
        cost: network passes in one evaluation (2 for a guided pair).
        normalization: units of the data against those of x_0 here, see below; None where they are not decided yet:
            ``train`` then measures them.
        sampler: the solver that the model was made for, if it was distilled; ``sample`` takes it by default.
        decoder: the autoencoder of a latent model, whose data are latents; ``sample`` decodes them.

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
        predicts: str | Parametrization = "noise",
        shape: tuple[int, ...] | None = None,
        sigma_data: float = 1.0,
        cost: int = 1,
        normalization: Normalization | None = None,
        sampler: Solver | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise InputError(f"sigma_data is a standard deviation and must be positive; got {sigma_data}")
        self.parametrization = parametrization_of(predicts, sigma_data)
        if not isinstance(sde, SDE):
            raise InputTypeError(f"sde must be an SDE such as VPSDE(); got {type(sde).__name__}")
        self.network = network
        if not isinstance(network, nn.Module | None) and (found := modules_in(network)):
            # Device, dtype, eval() and to() reach a network that a function calls.
            self.within = nn.ModuleList(found)
        self.sde = sde
        self.shape = None if shape is None else tuple(shape)
        own = self.parametrization
        self.sigma_data = own.sigma_data if isinstance(own, EDMPrediction) else sigma_data
        self.cost = cost
        self.normalization = normalization
        self.sampler = sampler
        # Not a submodule: it takes no part in training, and is described by its hash.
        self.__dict__["_decoder"] = decoder
        if normalization is not None and self.shape is not None:
            normalization.check_shape(self.shape)
        self._pure_noise_at_1 = float(sde.marginal(1.0)[0]) == 0
        self._known: dict[float, tuple[float, float]] = {}
        self._first: tuple[Any, Tensor | None] = (None, None)

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass with outputs of its own is denoised through them."""
        super().__init_subclass__(**options)
        if "outputs" in vars(cls) and "denoise" not in vars(cls):
            cls.denoise = cls.forward = ScoreModel._denoise_outputs  # type: ignore[method-assign]

    def __repr__(self) -> str:
        parts = [self._network_name(), repr(self.sde), f"predicts {self.predicts!r}", f"shape {self.shape}"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _network_name(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        if self.network is None:
            return f"{count:,} parameters" if count else "exact"
        name = getattr(self.network, "__name__", type(self.network).__name__)
        if name.startswith("_"):
            return "exact"
        return f"{name} of {count:,} parameters" if count else name

    def table(self) -> ResultTable:
        """Process, network, parametrization, shape, units and device of the model."""
        count = sum(p.numel() for p in self.parameters())
        values = {
            "process": repr(self.sde),
            "network": None if self.network is None else type(self.network).__name__,
            "parameters": count,
            "predicts": self.predicts,
            "shape": self.shape,
            "network passes in an evaluation": self.cost,
            "units": None if self.normalization is None else self.normalization.method,
            "device": str(self.device),
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
        }
        facts = {k: (f"{v:,}" if k == "parameters" else str(v), v) for k, v in values.items() if v is not None}
        return ResultTable.of_facts(facts, type(self).__name__)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The noise schedule of the model's process as a matplotlib figure: alpha^2, g^2 and SNR against t.

        Args:
            path: a .png, .svg or .pdf file to write it to as well.

        Raises:
            ValueError: another suffix.
        """
        return finished(schedule_figure({type(self.sde).__name__: self.sde}), path)

    @property
    def predicts(self) -> str:
        """The name of the parametrization."""
        return self.parametrization.name

    @property
    def device(self) -> torch.device:
        """The device of the network's first parameter or buffer; the CPU if it has none."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the network's first floating parameter; None without parameters."""
        return next((p.dtype for p in self.parameters() if p.dtype.is_floating_point), None)

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of a run's state: that of the network, and float32 at least."""
        return torch.promote_types(self.dtype or torch.float32, torch.float32)

    @property
    def units(self) -> Normalization:
        """The map between data and what the network sees; the identity where none is decided."""
        return IDENTITY if self.normalization is None else self.normalization

    @property
    def decoder(self) -> Decoder | None:
        """The autoencoder of a latent model, also behind guidance; None for other models."""
        own: Decoder | None = self.__dict__.get("_decoder")
        inner = self._modules.get("model")
        return inner.decoder if own is None and isinstance(inner, ScoreModel) else own

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of what ``sample`` returns: of a decoded sample for a latent model, else ``shape``."""
        return self.shape if self.decoder is None else self.decoder.shape

    def to_samples(self, z: Tensor) -> Tensor:
        """What ``sample`` returns for x_0 = z in the units of the network: in units of the data, and decoded."""
        x = self.units.to_data(z)
        return x if self.decoder is None else self.decoder.to(x.device).decode(x)

    def from_samples(self, x: Tensor) -> Tensor:
        """The inverse of ``to_samples``: x_0 in the units of the network, of images or latents for a latent model."""
        return self.units.to_model(self.to_latents(x))

    def to_latents(self, x: Tensor) -> Tensor:
        """Data in the shape of the model: images of a latent model are encoded, and anything else is returned."""
        decoder = self.decoder
        return x if decoder is None or tuple(x.shape[1:]) != decoder.shape else decoder.to(x.device).encode(x)

    def arguments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's inputs at (x, t), before x is cast to the network's dtype."""
        return self.parametrization.input(self.sde, x, t)

    def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """The network's output at (x, t), and its variance channels if it has twice the channels of x.

        One evaluation.
        """
        return self._read(self.network(*self._cast(*self.arguments(x, t)), **condition), x)

    def _cast(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """X in the dtype of a network of 16 bits; t keeps its digits."""
        low = self.low_precision()
        return (x, t) if low is None or x.dtype == low else (x.to(low), t)

    def _read(self, out: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tensor that a network returned for x, in the dtype of x, and the second half of its channels if any."""
        out = tensor_of(out).to(x.dtype)
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
        network, weight = self._first
        if network is not self.network:
            weight = next(self.parameters(), None)
            # In a tuple, so that the parameter is not registered a second time.
            self._first = (self.network, weight)
        return weight.dtype if weight is not None and weight.dtype in (torch.bfloat16, torch.float16) else None

    def bind(self, condition: dict[str, Any]) -> dict[str, Any]:
        """The conditions of a whole run before it is cut into batches, with what the model adds for each sample."""
        return condition

    def for_run(self, solver: Solver, times: Tensor, eta: float) -> ScoreModel:
        """The model that a run of a solver evaluates: this one, unless its guidance depends on the steps.

        Args:
            solver: that runs.
            times: of its grid, float64 (steps + 1,).
            eta: noise level of the reverse process.

        Raises:
            ValueError: guidance that is not defined for the solver.

        Warns:
            UserWarning: guidance that the solver samples badly.
        """
        return self

    def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The network's own output at (x, t): one evaluation."""
        return self.outputs(x, t, **condition)[0]

    def _affine(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of x_0 = p x + q output, float64."""
        may_fail = self._pure_noise_at_1 and not self.parametrization.defined_at_pure_noise
        if may_fail and t.device.type == "cpu" and bool((self.sde.marginal(t)[0] == 0).any()):
            raise InputError(
                f"x_0 cannot be found from the {self.predicts} where alpha(t) = 0 (t = 1 of "
                f"{type(self.sde).__name__}); use predicts='velocity' or 'data', or a smaller t"
            )
        return self.parametrization.affine(self.sde, t)

    def _affine_at(self, t: float) -> tuple[float, float]:
        """(p, q) at one time; kept, since twenty operations on small tensors show next to a small network."""
        if len(self._known) >= _KNOWN:
            self._known.clear()
        p, q = self._affine(torch.tensor(t, dtype=torch.float64, device="cpu"))
        self._known[t] = found = float(p), float(q)
        return found

    def check_defined_at_pure_noise(self) -> None:
        """Refuse a process with alpha(1) = 0 for a network whose output does not determine x_0 there.

        Raises:
            ValueError: alpha(1) = 0 and the network predicts neither the velocity nor the data.
        """
        if not self.parametrization.defined_at_pure_noise and self._pure_noise_at_1:
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
        # The network is called from here: no other function stands between a run and its network.
        out = self.network(*self._cast(*self.arguments(x, t)), **condition)
        return self.denoised_from(self._read(out, x)[0], x, t)

    forward = denoise

    def _denoise_outputs(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.denoised_from(self.outputs(x, t, **condition)[0], x, t)

    def denoise_with_share(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t = x], and the learned variance of a step: how far log Sigma lies between log beta~ and log beta.

        One evaluation. The share is (1 + output) / 2 of the second half of the network's channels, like x
        (Nichol & Dhariwal 2021, eq. 15); None where the network learned no variance.
        """
        if type(self).outputs is ScoreModel.outputs:
            # As in ``denoise``, the network is called from here.
            output, extra = self._read(self.network(*self._cast(*self.arguments(x, t)), **condition), x)
        else:
            output, extra = self.outputs(x, t, **condition)
        return self.denoised_from(output, x, t), None if extra is None else (1 + extra) / 2

    def learned_variance(self) -> LearnedVariance | None:
        """The call with a learned variance for a reverse process; None where a subclass defines ``denoise``."""
        if type(self).denoise not in (ScoreModel.denoise, ScoreModel._denoise_outputs):
            return None
        return LearnedVariance(self.denoise, self.denoise_with_share)

    def denoised_from(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] from the network's output there: no evaluation."""
        if isinstance(self.parametrization, DataPrediction):
            return output
        shared = _shared(t)
        if shared is not None:
            a, b = self._known.get(shared) or self._affine_at(shared)
            return a * x + b * output
        p, q = self._affine(t)
        return per_sample(p, x) * x + per_sample(q, x) * output

    def output_for(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output that stands for E[x_0 | x_t = x] = x0: the inverse of ``denoised_from``."""
        p, q = self._affine(t)
        return (x0 - per_sample(p, x) * x) / per_sample(q, x)

    def noise(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[eps | x_t = x] = (x - alpha x_0) / sigma; (B, ...) from x (B, ...) and t (B,)."""
        return self.parametrization.noise(self.sde, self.output(x, t, **condition), x, t)

    def score(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """Grad log p_t(x) = -eps / sigma."""
        return self.parametrization.score(self.sde, self.output(x, t, **condition), x, t)

    def velocity(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[v | x_t = x], v = a x_0 + b eps with the weights of the path."""
        return self.parametrization.velocity(self.sde, self.output(x, t, **condition), x, t)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target of the network's output for x_t = alpha x_0 + sigma eps.

        Regression on it with the weight of the noise error times ``output_gain(t)**2`` is denoising score
        matching in every parametrization.
        """
        return self.parametrization.target(self.sde, x0, eps, t)

    def output_gain(self, t: Tensor) -> Tensor:
        """|d eps / d output|: the factor from an error of the output to an error of the noise (float64).

        >>> from sde_diffusion.sde import VPSDE
        >>> ScoreModel(None, VPSDE(), "noise").output_gain(torch.tensor([0.5]))
        tensor([1.], dtype=torch.float64)
        """
        return self.parametrization.gain(self.sde, t)


def _shared(t: Tensor) -> float | None:
    """The time of the whole batch, if it is one and reading it does not wait for a device."""
    if t.device.type != "cpu" or t.numel() == 0 or t.requires_grad or torch.compiler.is_compiling():
        return None
    low, high = (float(end) for end in t.aminmax())
    return low if low == high else None
