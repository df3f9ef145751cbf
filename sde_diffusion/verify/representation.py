"""Independence of the result from precision, device, shape and parametrization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.verify.adaptive import tolerance_of
from sde_diffusion.verify.result import Check
from sde_diffusion.verify.targets import VP, gaussian, mixture, process, start
from solvers import ReverseProcess, Solver, solve

_NFE, _SINGLE, _ROUNDING = 12, 1e-3, 1e-9


def dtype(solver: Solver) -> Check | None:
    """float32 and float64 are kept from start to end, and times arrive in float64.

    The float32 result must be that of float64 to 1e-3 (of an adaptive solver, to its tolerance),
    on the CPU and on a CUDA device if available.
    """
    wrong: list[str] = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    # Gaussian data: no two modes that rounding could choose between.
    exact = process(gaussian(), solver)
    truth = _end(solver, exact, start(8))
    allowed = _allowed(solver)
    apart = 0.0
    for device in devices:
        for kind in (torch.float32, torch.float64):
            problem = ReverseProcess(_guarded(exact, kind, device, wrong), exact.path, exact.eta)
            out = _end(solver, problem, start(8, dtype=kind).to(device))
            if out.dtype != kind or out.device.type != device:
                wrong.append(f"{kind} on {device} came back as {out.dtype} on {out.device}")
            apart = max(apart, float((out.double().cpu() - truth).abs().max()))
    return Check(
        "dtype",
        not wrong and apart <= allowed,
        f"kept on {' and '.join(devices)}; float32 = float64 to {allowed:g}",
        "; ".join(dict.fromkeys(wrong)) or f"kept; largest difference {apart:.0e}",
        {"difference": apart, "devices": ", ".join(devices)},
    )


def _allowed(solver: Solver) -> float:
    """Allowed distance of the float32 result from the float64 result."""
    if not solver.adaptive:
        return _SINGLE
    tolerance = tolerance_of(solver)
    # Rounding decides which steps are accepted: the results differ by the order of the tolerance, in
    # a stochastic run the distance on one path and not the error of the moments.
    return 3 * tolerance**0.5 if solver.stochastic else max(_SINGLE, 10 * tolerance)


def _guarded(
    exact: ReverseProcess, kind: torch.dtype, device: str, wrong: list[str]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The model, noting inputs that are not as they should be."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        if x.dtype != kind or x.device.type != device:
            wrong.append(f"the model got x as {x.dtype} on {x.device}")
        if t.dtype != torch.float64 or t.shape != x.shape[:1]:
            wrong.append(f"the model got t as {t.dtype} {tuple(t.shape)}")
        # Times are checked above; the mixture itself lives on the CPU.
        return exact.model(x.cpu(), t.cpu()).to(device)

    return model


def parametrization(solver: Solver) -> Check | None:
    """The exact model declared as noise, data, velocity and score gives one result to rounding."""
    exact, x = mixture(), start(8)
    outputs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "data": exact.denoise,
        "noise": exact.noise,
        "velocity": exact.velocity,
        "score": exact.score,
    }
    ends = {
        name: _end(solver, process(ScoreModel(output, VP, predicts=name), solver), x)
        for name, output in outputs.items()
    }
    apart = {name: float((end - ends["data"]).abs().max()) for name, end in ends.items()}
    size = max(1.0, float(ends["data"].abs().max()))
    return Check(
        "parametrization",
        all(a <= _ROUNDING * size for a in apart.values()),
        f"one result to {_ROUNDING:g}",
        f"largest difference {max(apart.values()):.0e}",
        {f"difference_{name}": a for name, a in apart.items()},
    )


def images(solver: Solver) -> Check | None:
    """A batch of images (B, 1, 2, 1) gives the same result as vectors (B, 2).

    Of a solver that sees channels, the same result as images (B, 1, 1, 2).
    """
    exact, x = process(mixture(), solver), start(8)
    other = (8, 1, 1, 2) if solver.sees_channels else (8, 2)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return exact.model(x.flatten(1), t).reshape(x.shape)

    shaped = ReverseProcess(model, exact.path, exact.eta)
    flat, image = _end(solver, shaped, x.reshape(other)), _end(solver, shaped, x.reshape(8, 1, 2, 1))
    same_shape = image.shape == (8, 1, 2, 1) and flat.shape == other
    apart = float((image.flatten(1) - flat.flatten(1)).abs().max()) if same_shape else float("inf")
    return Check(
        "images",
        apart <= _ROUNDING,
        f"images = {'images of another side' if solver.sees_channels else 'vectors'} to 1e-09",
        f"difference {apart:.0e}" if same_shape else f"shape {tuple(image.shape)}",
        {"difference": apart},
    )


def _end(solver: Solver, problem: ReverseProcess, x: Tensor) -> Tensor:
    return solve(problem, x, solver=solver, nfe=None if solver.adaptive else _NFE).x
