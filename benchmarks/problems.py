r"""Problems of the comparison: a model, its initial noise, and the reference solutions.

    digits        mixture of Gaussians on 512 handwritten digits, exact score
    checkerboard  32 narrow Gaussians of unequal weight in 2-D, exact score
    spectrum      Gaussian in 3072 dimensions, power spectrum of natural images, exact flow
    a run         any checkpoint: the probability flow of its network

The error of a solver is the distance between each of its samples and the endpoint of the model's
probability flow from the same initial noise. The endpoint has a closed form for the Gaussian; for the
others see ``sde_diffusion.sampling.reference_solution``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sde_diffusion import SDE, VPSDE, GaussianMixture, ScoreModel
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.storage.checkpoint import load


@dataclass(frozen=True)
class Problem:
    """A model to sample from.

    Attributes:
        name: the printed name.
        model: the model to sample.
        shape: shape of one sample.
        dtype: dtype of all computations; float64 if the model allows it.
        samples: largest number of samples in a set.
        reference_steps: number of steps of the reference solution.
        flow: the exact endpoint, if known.
    """

    name: str
    model: ScoreModel
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    samples: int = 2**20
    reference_steps: int = 2000
    flow: Callable[[Tensor], Tensor] | None = None

    def initial_noise(self, first: int, n: int) -> Tensor:
        """x_1 of seeds first to first + n - 1."""
        return self.model.sde.prior(
            (n, *self.shape), seeds=range(first, first + n), dtype=self.dtype, device=self.device
        )

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def fingerprint(self) -> str:
        """A hash of the model and the path, twelve hex digits."""
        digest = hashlib.sha256(repr((self.model.sde, self.model.predicts, self.shape, self.dtype)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        for name, module in self.model.named_modules():
            plain = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, int | float | str)}
            plain.pop("training", None)  # tuning disables gradients
            digest.update(f"{name} {sorted(plain.items())}".encode())
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def endpoints(self, x1: Tensor, batch: int = 512) -> tuple[Tensor, float]:
        """The reference solution from x_1, and its own mean RMS error per sample.

        Raises:
            FloatingPointError: the model returns values that are not finite.
        """
        if self.flow is not None:
            return self.flow(x1), 0.0
        return converged(self.model, x1, steps=self.reference_steps, batch_size=batch)


def digits(std: float = 0.15) -> Problem:
    """The first 512 digits in [-1, 1], each the centre of a Gaussian."""
    means = torch.from_numpy(load_digits().images[:512] / 8 - 1).reshape(-1, 64)
    return Problem("digits", GaussianMixture(means, std=std, sde=VPSDE()), (64,))


def checkerboard(std: float = 0.04) -> Problem:
    """Four Gaussians on each dark square of a 4 x 4 board, with weights from 1 to 8."""
    centres = [
        (x + dx, y + dy)
        for i, x in enumerate((-0.75, -0.25, 0.25, 0.75))
        for j, y in enumerate((-0.75, -0.25, 0.25, 0.75))
        for dx in (-0.125, 0.125)
        for dy in (-0.125, 0.125)
        if (i + j) % 2
    ]
    weights = torch.tensor([1.0 + 5 * k % 8 for k in range(len(centres))])
    means = torch.tensor(centres, dtype=torch.float64)
    model = GaussianMixture(means, std=std, weights=weights, sde=VPSDE())
    return Problem("checkerboard", model, (2,), reference_steps=4000)


class _Diagonal(nn.Module):
    """The denoiser of N(0, diag(variances)): alpha c / (alpha^2 c + sigma^2) x."""

    def __init__(self, variances: Tensor, sde: SDE) -> None:
        super().__init__()
        self.register_buffer("variances", variances)
        self.variances: Tensor
        self.sde = sde

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde(t[:1])[:2]
        return (alpha * self.variances / (alpha**2 * self.variances + sigma**2)).to(x.dtype) * x


def gaussian_spectrum(variances: Tensor, sde: SDE) -> ScoreModel:
    """The exact model of a Gaussian with these variances."""
    return ScoreModel(_Diagonal(variances, sde), sde, "data", tuple(variances.shape))


def spectrum() -> Problem:
    """3 x 32 x 32 cosine coefficients of variance 1 / (1 + f^2); two channels are weaker."""
    f2 = torch.arange(32, dtype=torch.float64).square()
    power = 1 / (1 + f2[:, None] + f2)
    variances = torch.stack([power, power / 10, power / 30]).flatten()
    # Mean variance 1/4, like images in [-1, 1].
    variances = variances * (0.25 / variances.mean())
    sde = VPSDE()

    def flow(x1: Tensor) -> Tensor:
        alpha, sigma = sde(1.0)[:2]
        return x1 * (variances / (alpha**2 * variances + sigma**2)).sqrt().to(x1.dtype)

    # The error is a mean over 3072 dimensions, so few samples estimate it well.
    return Problem("spectrum", gaussian_spectrum(variances, sde), (3072,), samples=16, flow=flow)


def run(path: str | Path, reference_steps: int = 800) -> Problem:
    """The problem of a run directory or checkpoint.

    Raises:
        FileNotFoundError: a run without a checkpoint.
        ValueError: a checkpoint without the shape of a sample.
    """
    model = load(path).eval()
    if model.shape is None:
        raise ValueError(f"the checkpoint of {path} does not record the shape of a sample")
    dtype = next(model.parameters()).dtype
    return Problem(Path(path).name, model, model.shape, dtype, reference_steps=reference_steps)


EXACT: dict[str, Callable[[], Problem]] = {
    "digits": digits,
    "checkerboard": checkerboard,
    "spectrum": spectrum,
}
