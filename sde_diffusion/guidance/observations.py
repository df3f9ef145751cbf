r"""Linear observations y = A x + noise: the operators A, with adjoint and the solves that inverse problems need.

Every method of ``guidance.inverse`` uses A in three ways only: A x, A' y, and the solution v of

    (a A A' + b I) v = y,      a >= 0, b >= 0,

which is closed form where A A' is diagonal in a known basis (masks, averages, circular blurs, small matrices) and
conjugate gradients elsewhere. With b = 0 it is the least-norm solution on the range of A, so that A' v is the
pseudo-inverse of A applied to y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.errors import InputError, InputTypeError
from solvers.noise import INDEPENDENT, standard_normal

_WIDEST = 1000  # standard deviation of a blur in pixels
_FEW = 256  # entries of a sample whose trace of A A' is taken from all of them
_PROBES = 16  # otherwise


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, ..., 1)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def with_axes_of(y: Tensor, c: Tensor) -> Tensor:
    """A factor for each sample (B, 1, ..., 1), with as many axes as y has."""
    return c.reshape(-1, *(1,) * (y.ndim - 1))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    y: Tensor,
    iterations: int,
    tolerance: float = 0.0,
    precondition: Callable[[Tensor], Tensor] = lambda residual: residual,
) -> Tensor:
    """The solution of a symmetric positive system, one for each sample (Hestenes & Stiefel 1952).

    Args:
        apply: the matrix, (B, ...) -> (B, ...).
        y: the right-hand side (B, ...).
        iterations: at most.
        tolerance: a sample rests once its residual is below this share of y, in the norm of the preconditioner.
        precondition: about the inverse of the matrix, symmetric and positive; the nearer, the fewer iterations.

    >>> conjugate_gradients(lambda v: 2 * v, torch.ones(1, 3), 1)
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    v, residual = torch.zeros_like(y), y
    direction = precondition(residual)
    square = inner(residual, direction)
    stop = square * tolerance**2
    for _ in range(iterations):
        image = apply(direction)
        curvature = inner(direction, image)
        # A sample without residual, or without curvature left in it, stays where it is.
        going = (square > stop) & (curvature > 0)
        step = torch.where(going, square / torch.where(going, curvature, torch.ones_like(curvature)), 0.0)
        v, residual = v + step * direction, residual - step * image
        towards = precondition(residual)
        after = inner(residual, towards)
        ratio = torch.where(going, after / torch.where(going, square, torch.ones_like(square)), 0.0)
        direction, square = towards + ratio * direction, torch.where(going, after, square)
    return v


class Operator(ABC):
    """The base class of linear operators on samples, A: (B, *shape) -> (B, *observed), with adjoint and solves."""

    iterations = 50  # of conjugate gradients, without a closed form

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x for each sample."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A' y for each observation."""

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """v with (a A A' + b I) v = y; the least-norm one on the range of A where b = 0.

        Args:
            y: (B, *observed).
            a: a number, or one for each sample (B, 1, ..., 1).
            b: like a.
        """
        return conjugate_gradients(lambda v: a * self(self.adjoint(v)) + b * v, y, self.iterations, 1e-6)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The least-norm x with A x nearest to y."""
        return self.adjoint(self.solve(y, 1.0, 0.0))


def _quotient(y: Tensor, c: Tensor | float) -> Tensor:
    """Y / c, and 0 where c is 0."""
    c = torch.as_tensor(c, dtype=y.dtype, device=y.device)
    return torch.where(c > 0, y / torch.where(c > 0, c, torch.ones_like(c)), torch.zeros_like(y))


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """The visible entries; hidden ones are 0 in y. Inpainting.

    Args:
        visible: bool, in the shape of a sample or broadcastable to it.

    >>> Mask(torch.tensor([True, False]))(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 0.]])
    """

    visible: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The visible entries of x."""
        return x * self.visible.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same."""
        return self(y)

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Y / (a + b) where visible."""
        return self(_quotient(y, torch.as_tensor(a) + torch.as_tensor(b)))


@dataclass(frozen=True, eq=False)
class Grey(Operator):
    """The mean over channels, (B, C, H, W) -> (B, 1, H, W), for colorization.

    >>> Grey()(torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)).flatten()
    tensor([3.])
    """

    channels: int = 3

    def __call__(self, x: Tensor) -> Tensor:
        """The mean over channels."""
        return x.mean(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each channel receives its share."""
        return y.expand(-1, self.channels, *y.shape[2:]) / self.channels

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """A A' = I / C."""
        return _quotient(y, torch.as_tensor(a) / self.channels + torch.as_tensor(b))


@dataclass(frozen=True, eq=False)
class Downsample(Operator):
    """The mean of each block of factor x factor pixels. Super-resolution.

    >>> Downsample(2)(torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[1.5000]]]])
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise InputError(f"the factor of a downsampling is a whole number, at least 1; got {self.factor}")

    def __call__(self, x: Tensor) -> Tensor:
        """Block means."""
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise InputError(
                f"downsampling by {self.factor} takes images (B, C, H, W) whose sides it divides; got "
                f"{tuple(x.shape)}: choose a common factor of both sides (--factor)"
            )
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each pixel of a block receives its share."""
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """A A' = I / factor^2."""
        return _quotient(y, torch.as_tensor(a) / self.factor**2 + torch.as_tensor(b))


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """A circular convolution with one kernel for all channels. Deblurring.

    Args:
        kernel: (h, w), with its centre at (h // 2, w // 2).

    >>> sharp = Blur(torch.ones(1, 1))
    >>> x = torch.rand(1, 1, 4, 4)
    >>> torch.allclose(sharp(x), x, atol=1e-6)
    True
    """

    kernel: Tensor

    @staticmethod
    def gaussian(std: float, size: int | None = None) -> Blur:
        """A Gaussian kernel whose entries sum to 1; by default it reaches to 3 standard deviations.

        Args:
            std: in pixels, > 0.
            size: an odd number of pixels.

        Raises:
            ValueError: a standard deviation that is not positive, or above 1000 pixels.
        """
        if not 0 < std <= _WIDEST:
            raise InputError(
                f"the standard deviation of a blur is in pixels and positive, at most {_WIDEST}; got {std:g}"
            )
        size = 2 * int(3 * std + 0.5) + 1 if size is None else size
        u = torch.arange(size, dtype=torch.float64, device="cpu") - size // 2
        line = torch.exp(-(u**2) / (2 * std**2))
        kernel = line[:, None] * line
        return Blur((kernel / kernel.sum()).float())

    def _response(self, x: Tensor) -> Tensor:
        h, w = self.kernel.shape
        if x.ndim != 4 or h > x.shape[2] or w > x.shape[3]:
            raise InputError(
                f"a blur with a kernel of {h} x {w} takes images (B, C, H, W) at least as large; got {tuple(x.shape)}; "
                "use a smaller standard deviation (--blur) or a kernel that is cut off earlier (size=)"
            )
        full = x.new_zeros(x.shape[2:])
        full[:h, :w] = self.kernel.to(x)
        return torch.fft.rfft2(torch.roll(full, (-(h // 2), -(w // 2)), (0, 1)))

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[2:])

    def __call__(self, x: Tensor) -> Tensor:
        """The blurred images."""
        return self._filtered(x, self._response(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with the kernel."""
        return self._filtered(y, self._response(y).conj())

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """A A' is diagonal in the Fourier basis."""
        power = self._response(y).abs().square()
        c = torch.as_tensor(a).to(y) * power + torch.as_tensor(b).to(y)
        usable = c > 1e-7 * power.max()  # where b = 0, frequencies that the blur removed stay away
        inverse = torch.where(usable, 1 / torch.where(usable, c, torch.ones_like(c)), torch.zeros_like(c))
        return self._filtered(y, inverse.to(self._response(y).dtype))


@dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """A dense matrix on flattened samples: (B, *shape) -> (B, M).

    Args:
        matrix: (M, D).
        shape: shape of a sample; (D,) by default.

    >>> Matrix(torch.tensor([[1.0, 1.0]]))(torch.tensor([[3.0, 4.0]]))
    tensor([[7.]])
    """

    matrix: Tensor
    shape: tuple[int, ...] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The products."""
        if x[0].numel() != self.matrix.shape[1]:
            raise InputError(
                f"the matrix takes samples of {self.matrix.shape[1]} entries; got {x[0].numel()}, shape "
                f"{tuple(x.shape[1:])}"
            )
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """The products with the transpose, in the shape of a sample."""
        return (y @ self.matrix.to(y)).reshape(len(y), *(self.shape or (self.matrix.shape[1],)))

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """By the eigenvectors of A A'."""
        values, vectors = torch.linalg.eigh(self.matrix.double() @ self.matrix.double().T)
        values = values.clamp_min(0)
        c = torch.as_tensor(a).double() * values + torch.as_tensor(b).double()
        usable = c > 1e-12 * values.max()
        inverse = torch.where(usable, 1 / torch.where(usable, c, torch.ones_like(c)), 0.0)
        return ((y.double() @ vectors * inverse) @ vectors.T).to(y)


@dataclass(frozen=True, eq=False)
class FourierMask(Operator):
    """The kept entries of the unitary 2-D Fourier transform, real and imaginary parts as channels.

    (B, C, H, W) -> (B, 2 C, H, W). Accelerated magnetic resonance imaging.

    Args:
        kept: (H, W) bool, in the order of ``torch.fft.fft2``.

    >>> kept = torch.zeros(2, 2, dtype=torch.bool)
    >>> kept[0, 0] = True  # the mean, times the root of the number of pixels
    >>> FourierMask(kept)(torch.ones(1, 1, 2, 2))[0, :, 0, 0]
    tensor([2., 0.])
    """

    kept: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The kept frequencies; others are 0."""
        spectrum = torch.fft.fft2(x, norm="ortho") * self.kept.to(x.device)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        """The real part of the inverse transform of the kept frequencies."""
        real, imaginary = y.chunk(2, 1)
        return torch.fft.ifft2(torch.complex(real, imaginary) * self.kept.to(y.device), norm="ortho").real


@dataclass(frozen=True, eq=False)
class Custom(Operator):
    """A linear operator from two functions of your own.

    Args:
        forward: (B, *shape) -> (B, *observed), linear.
        transpose: its adjoint; ``adjoint_error`` checks the pair.

    >>> double = Custom(lambda x: 2 * x, lambda y: 2 * y)
    >>> double(torch.ones(1, 2)), adjoint_error(double, (2,)) < 1e-12
    (tensor([[2., 2.]]), True)
    """

    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y."""
        return self.transpose(y)


def as_operator(operator: Any) -> Operator:
    """An operator, from one of ours or a linear physics object of deepinv (``A`` and ``A_adjoint``).

    Raises:
        TypeError: something else.
    """
    if isinstance(operator, Operator):
        return operator
    if callable(getattr(operator, "A", None)) and callable(getattr(operator, "A_adjoint", None)):
        return Custom(operator.A, operator.A_adjoint)
    raise InputTypeError(
        f"expected an Operator such as Mask or Downsample, or a linear physics object of deepinv; got "
        f"{type(operator).__name__}. For functions of your own: Custom(forward, transpose)"
    )


def mean_eigenvalue(operator: Operator, x: Tensor) -> float:
    """The trace of A A' over its rank, for samples like those of the batch x; for many entries from random signs.

    >>> mean_eigenvalue(Matrix(torch.tensor([[3.0, 4.0], [0.0, 1.0]])), torch.zeros(1, 2))  # (25 + 1) / 2
    13.0
    """
    entries = x[0].numel()
    if entries <= _FEW:
        probes = torch.eye(entries, dtype=x.dtype, device=x.device).reshape(entries, *x.shape[1:])
        squares = operator(probes).square().sum()
    else:
        signs = standard_normal(range(_PROBES), x.shape[1:], INDEPENDENT) > 0
        squares = operator(torch.where(signs, 1.0, -1.0).to(x)).square().sum() / _PROBES
    reached = int((operator(torch.ones_like(x[:1])) != 0).sum())
    return float(squares) / max(reached, 1)


def adjoint_error(operator: Operator, shape: Sequence[int], seed: int = 0) -> float:
    """The relative error of <A x, y> = <x, A' y> for random x and y; rounding where the adjoint is right.

    >>> adjoint_error(Downsample(2), (1, 4, 4)) < 1e-12
    True
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *shape, generator=generator, dtype=torch.float64, device="cpu")
    image = operator(x)
    y = torch.randn(image.shape, generator=generator, dtype=torch.float64, device="cpu")
    left, right = float((image * y).sum()), float((x * operator.adjoint(y)).sum())
    return abs(left - right) / max(abs(left), abs(right), 1e-300)
