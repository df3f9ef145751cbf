r"""The reference solution of a model's probability-flow ODE, to which all solvers are compared.

The error of a solver is the distance of each sample to the point that the flow of the same model reaches from
the same noise. That point is computed by the velocity form at order 4 with the corrector, on equal steps of

    rho^(1/7) + t, each scaled to [0, 1],        rho = sigma/alpha.

The first term resolves the dependence on the noise level, of a network on log rho and of a mixture on rho; the second
the frequencies of the time embedding: on the digits network at 800 steps the error is 8e-7 with it and
1.3e-5 without. All is done in float64 also where the model is not: steps this small would add up its rounding. The
stated error of the reference solution is its distance to a run with half the steps and four times the last rho, an
upper bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.report.share_of_work import Relay, part_of
from sde_diffusion.sde import SDE
from solvers import Step, solve
from solvers.conditions import cut, in_dtype
from solvers.errors import InputError, NonFiniteError
from solvers.exponential.adams import ExponentialAdams
from solvers.solver import sample_rms

# The range of rho. The jump below its end has an error of rho^2.
_START, _END = 4096.0, 1e-5
_SOLVER = ExponentialAdams(3, form="velocity", variable="angle", corrector=True, sigma_data=0.5)


@torch.no_grad()
def converged(
    model: ScoreModel,
    x1: Tensor,
    *,
    steps: int = 800,
    batch_size: int = 512,
    dtype: torch.dtype = torch.float64,
    checked: int | None = None,
    pool: Pool | None = None,
    on_share: Callable[[float], None] | None = None,
    on_state: Callable[[Tensor, int, Tensor, Tensor], None] | None = None,
    **condition: Any,
) -> tuple[Tensor, float]:
    """The reference solution from x_1, and its own error.

    Args:
        model: any ScoreModel.
        x1: (B, ...) at t = 1.
        steps: evaluations of the finer of two runs, at least 4.
        batch_size: samples integrated together.
        dtype: of the network's arithmetic; float32 is several times as fast, and a run of some hundred steps adds
            roundings of about 1e-5.
        checked: samples that the second run, which says the error, is made for; all by default.
        pool: processes with ``reference_work`` of the model and its conditions, which share the batches.
        on_share: called with the share of the steps that is done.
        on_state: called with the states of the finer run: the indices of samples, the number of the time in
            ``reference_grid(model.sde, steps)``, x, and the denoised sample at the time before; not with a pool.
        condition: conditions of the network; tensors (B, ...) have a row for each sample.

    Returns:
        The endpoints (B, ...) in float64, and their error: mean over the samples of the RMS over entries.

    Raises:
        ValueError: fewer than 4 steps.
        FloatingPointError: the model does not return numbers.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(1), torch.full((1,), 0.04), sde=VPSDE())
    >>> x1 = torch.tensor([[1.0]])
    >>> x0, error = converged(model, x1, steps=400)
    >>> abs(float(x0 - model.flow(x1.double(), 1.0, 0.0))) < error < 1e-5
    True
    """
    refuse_distilled(model, "solve")
    if steps < 4:
        raise InputError(f"a reference solution takes at least 4 steps; got {steps}")
    relay = Relay()
    report = None if on_share is None else lambda share, _=None: on_share(share)

    def keep(samples: Tensor, n: int, node: int, x: Tensor, denoised: Tensor) -> None:
        if on_state is not None and n == steps:
            on_state(samples, node, x, denoised)

    shared = pool or Pool(reference_work(model, condition, len(x1), relay, on_state and keep))

    again = len(x1) if checked is None else min(checked, len(x1))
    done, total = 0, steps * len(x1) + (steps // 2) * again

    def integrate(n: int, end: float, samples: int) -> Tensor:
        nonlocal done
        parts = torch.split(torch.arange(samples, device="cpu"), batch_size)

        def jobs() -> Iterator[tuple[Any, ...]]:
            for p in parts:
                relay.report = part_of(report, done / total, n * len(p) / total)
                start = x1[p.to(x1.device)]
                yield start if pool is None else start.cpu(), p, n, end, dtype

        found = []
        for p, part in zip(parts, shared.map("reference", jobs()), strict=True):
            found.append(part.to(x1.device))
            done += n * len(p)
            if on_share is not None:
                on_share(done / total)
        return torch.cat(found).double()

    fine = integrate(steps, _END, len(x1))
    coarse = integrate(steps // 2, 4 * _END, again)
    lost = int((~fine.isfinite().flatten(1).all(1)).sum())
    if lost:
        raise NonFiniteError(
            f"the probability flow of the model is not finite for {lost} of {len(x1)} samples: the model returns NaN "
            "or inf on the way; check its weights"
        )
    return fine, float(rms(fine[: len(coarse)] - coarse).mean())


def reference_work(
    model: ScoreModel,
    condition: dict[str, Any],
    rows: int,
    relay: Relay | None = None,
    keep: Callable[[Tensor, int, int, Tensor, Tensor], None] | None = None,
) -> dict[str, Callable[..., Any]]:
    """The work of a pool that ``converged`` shares.

    Args:
        model: any ScoreModel.
        condition: conditions that are bound to the model.
        rows: number of samples that they have rows for.
        relay: receives the share of a job that is done.
        keep: called with the indices of samples, the steps of their run, the number of a time, x there, and the
            denoised sample at the time before.
    """
    kept: dict[torch.dtype, tuple[ScoreModel, dict[str, Any]]] = {}

    @torch.no_grad()
    def reference(x1: Tensor, samples: Tensor, steps: int, end: float, dtype: torch.dtype) -> Tensor:
        if dtype not in kept:
            kept[dtype] = copy.deepcopy(model).to(dtype).eval(), in_dtype(condition, rows, dtype)
        precise, given = kept[dtype]
        own = x1.to(device=precise.device if precise.dtype else x1.device, dtype=dtype)
        share = None if relay is None else relay.part(0.0, 1.0)

        def on_step(step: Step) -> None:
            if share is not None:
                share((step.index + 1) / steps)
            if keep is not None:
                assert step.denoised is not None
                keep(samples, steps, step.index + 1, step.x, step.denoised)

        return _integrate(precise, own, steps, end, cut(given, rows, samples), on_step).to(x1.device)

    return {"reference": reference}


def _integrate(
    model: ScoreModel,
    x1: Tensor,
    steps: int,
    end: float,
    condition: dict[str, Any],
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    flow = model.sde.reverse(model, 0.0, **condition)
    return solve(flow, x1, solver=_SOLVER, grid=_grid(model.sde, steps, end), on_step=on_step).x


def integrate_reference(
    model: ScoreModel, x1: Tensor, steps: int, condition: dict[str, Any], on_step: Callable[[Step], None]
) -> Tensor:
    """The endpoints of one run on ``reference_grid(model.sde, steps)``; ``on_step`` sees every state."""
    return _integrate(model, x1, steps, _END, condition, on_step)


def reference_grid(sde: SDE, steps: int) -> Tensor:
    """The times of the finer of the two runs, float64 (steps + 1,)."""
    return _grid(sde, steps, _END)


def _grid(sde: SDE, steps: int, end: float) -> Tensor:
    """Equal steps of rho^(1/7) + t, each scaled to [0, 1], from t = 1 to rho = end, then 0."""
    u = torch.linspace(0, 1, 16 * steps, dtype=torch.float64, device="cpu")
    first = min(rho_of(sde, 1.0), _START) ** (1 / 7)
    root = first + (end ** (1 / 7) - first) * u
    t = sde.time(-7 * torch.log(root))
    t[0] = 1.0
    clock = (u + (1 - t) / (1 - t[-1])) / 2
    times = np.interp(np.linspace(0, 1, steps), clock.numpy(), t.numpy())
    return torch.tensor([*times, 0.0], dtype=torch.float64, device="cpu")


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B,) float64.

    >>> rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [3.5355339059327378, 0.0]
    """
    return sample_rms(x.double())


def rho_of(sde: SDE, t: float) -> float:
    """The noise-to-signal ratio sigma / alpha.

    >>> from sde_diffusion.sde import EDM
    >>> round(rho_of(EDM(), 1.0), 6)
    80.0
    """
    alpha, sigma = sde.marginal(t)
    return float(sigma / alpha)
