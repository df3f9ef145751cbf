"""Codes of images, and images of codes: reconstruction, variations, interpolation and change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks.given import GivenConditions
from sde_diffusion.sampling.inversion import decode, encode, interpolate
from sde_diffusion.sampling.sampler import sample
from solvers import Solver
from solvers.errors import InputError


@torch.no_grad()
def codes_of(model: ScoreModel, x: Tensor, batch_size: int = 256) -> Tensor:
    """Return the codes z of images, (B, K).

    Args:
        model: of a network with ``code``.
        x: images in units of the data, shaped like the network's condition image.
        batch_size: images encoded together.

    Raises:
        ValueError: a network without ``code``, or images of another shape.

    >>> from sde_diffusion.networks import build
    >>> from sde_diffusion.sde import VPSDE
    >>> network = build("dit", shape=(1, 8, 8), width=16, depth=1, heads=2, image=(1, 8, 8), code=4)
    >>> codes_of(ScoreModel(network, VPSDE(), "velocity"), torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 4])
    """
    given = getattr(model.network, "given", None)
    if not isinstance(given, GivenConditions) or given.semantic is None:
        raise InputError(
            "the network makes no codes of images; train one: sdediff train --code 16, or build(..., code=16)"
        )
    if given.image != tuple(x.shape[1:]):
        raise InputError(f"images have shape {tuple(x.shape)}; this network encodes (B, {str(given.image)[1:-1]})")
    return torch.cat([given.encoded(part.to(model.device)) for part in torch.split(x, batch_size)])


def reconstruct(
    model: ScoreModel,
    x: Tensor,
    *,
    code: Tensor | None = None,
    solver: str | Solver = "rk45",
    tolerance: float = 1e-4,
    steps: int | None = None,
) -> Tensor:
    """Return the images of (z, x_1): both codes of x, or another z with the x_1 of x.

    Args:
        model: of a network with ``code``.
        x: images (B, ...) in units of the data.
        code: z of the way back, (B, K); the z of x when None, and the result is x up to the error of the solver.
        solver: of both ways, as in ``encode``.
        tolerance: for adaptive solvers given by name.
        steps: for fixed-step solvers.

    Raises:
        ValueError: as ``codes_of`` and ``encode``.
    """
    z = codes_of(model, x)
    how = {"solver": solver, "tolerance": tolerance, "steps": steps}
    rest = encode(model, x, code=z, **how)  # type: ignore[arg-type]
    return decode(model, rest, code=z if code is None else code, **how)  # type: ignore[arg-type]


def variations(model: ScoreModel, x: Tensor, count: int = 1, *, nfe: int = 20, seed: int = 0) -> Tensor:
    """Return images with the z of x and new noise, (B, count, ...).

    Args:
        model: of a network with ``code``.
        x: images (B, ...) in units of the data.
        count: variations of each.
        nfe: network evaluations for each.
        seed: of the noise.

    Raises:
        ValueError: as ``codes_of`` and ``sample``.
    """
    z = codes_of(model, x).repeat_interleave(count, 0)
    drawn = sample(model, len(z), nfe=nfe, seed=seed, code=z.cpu(), progress=False)
    return drawn.reshape(len(x), count, *drawn.shape[1:])


def interpolated(
    model: ScoreModel, a: Tensor, b: Tensor, weights: Sequence[float], *, tolerance: float = 1e-4
) -> Tensor:
    """Return images on the way from a to b, (weights, B, ...): z on a straight line, x_1 on a great circle.

    Args:
        model: of a network with ``code``.
        a: images (B, ...) in units of the data.
        b: images like a.
        weights: in [0, 1]; 0 is a and 1 is b.
        tolerance: of the probability flow.

    Raises:
        ValueError: as ``codes_of`` and ``interpolate``.
    """
    za, zb = codes_of(model, a), codes_of(model, b)
    rest = interpolate(
        encode(model, a, code=za, tolerance=tolerance), encode(model, b, code=zb, tolerance=tolerance), list(weights)
    )
    mixed = [
        decode(model, x1, code=torch.lerp(za, zb, float(weight)), tolerance=tolerance)
        for weight, x1 in zip(weights, rest, strict=True)
    ]
    return torch.stack(mixed)


def change(model: ScoreModel, x: Tensor, step: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """Return images with z moved by a step and their own x_1.

    Args:
        model: of a network with ``code``.
        x: images (B, ...) in units of the data.
        step: what is added to z, (K,) or (B, K), such as ``Attributes.step``.
        tolerance: of the probability flow.

    Raises:
        ValueError: a step of another length, or as ``codes_of``.
    """
    z = codes_of(model, x)
    if step.shape not in (z.shape, z.shape[1:]):
        raise InputError(f"a step of codes has shape {tuple(step.shape)}; expected {tuple(z.shape[1:])}")
    return reconstruct(model, x, code=z + step.to(z), tolerance=tolerance)
