r"""States of the reference solution at any times, with which the states of a solver are compared.

The reference solution (``sampling.reference_solution``) runs on its own grid. Between its times the state is found by
cubic interpolation of

    y = x / sqrt(alpha^2 + sigma^2)      against      theta = atan2(sigma, alpha),

which is smooth up to both ends of every process: at theta = 0, y is x_0, and with alpha(1) = 0, y is the noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.reference_solution import integrate_reference, reference_grid
from solvers import Step
from solvers.conditions import in_dtype
from solvers.errors import InputError

_NODES = 4
_MOST_KEPT = 64


@torch.no_grad()
def reference_path(
    model: ScoreModel,
    x1: Tensor,
    times: Sequence[float],
    *,
    steps: int = 400,
    on_share: Callable[[float], None] | None = None,
    **condition: Any,
) -> Tensor:
    """The states of the reference solution from x_1 at some times.

    Args:
        model: any ScoreModel.
        x1: (B, ...) at t = 1.
        times: T times in [0, 1].
        steps: evaluations of the reference solution, at least 4.
        on_share: called with the share of the steps that is done.
        condition: conditions of the network; tensors (B, ...) have a row for each sample.

    Returns:
        (T, B, ...) float64, in the units of the model.

    Raises:
        ValueError: fewer than 4 steps, or a time outside [0, 1].

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(1), torch.full((1,), 0.04), sde=VPSDE())
    >>> x1 = torch.tensor([[1.0]])
    >>> found = reference_path(model, x1, [0.3])
    >>> bool((found[0] - model.flow(x1.double(), 1.0, 0.3)).abs() < 1e-6)
    True
    """
    if steps < _NODES:
        raise InputError(f"a reference solution takes at least {_NODES} steps; got {steps}")
    if any(not 0 <= t <= 1 for t in times):
        raise InputError(f"times lie between 0 and 1; got {min(times):g} to {max(times):g}")
    precise = copy.deepcopy(model).to(torch.float64).eval()
    given = in_dtype(condition, len(x1), torch.float64)
    wanted = torch.as_tensor(list(times), dtype=torch.float64, device="cpu")
    angle, size = _angle_and_size(model, wanted)
    grid = reference_grid(model.sde, steps)
    nodes, weights = _cubic(_angle_and_size(model, grid)[0], angle)
    found = torch.zeros(len(wanted), *x1.shape, dtype=torch.float64, device=x1.device)
    sizes = _angle_and_size(model, grid)[1]

    def add(node: int, x: Tensor) -> None:
        row, column = (nodes == node).nonzero(as_tuple=True)
        for k, c in zip(row.tolist(), column.tolist(), strict=True):
            found[k] += weights[k, c].item() * (x / sizes[node].item())

    def on_step(step: Step) -> None:
        add(step.index + 1, step.x)
        if on_share is not None:
            on_share((step.index + 1) / steps)

    add(0, x1.double())
    integrate_reference(precise, x1.double(), steps, given, on_step)
    return found * size.to(x1.device).reshape(-1, *(1,) * x1.ndim)


class ReferencePath:
    """The states of a reference solution and its denoised samples, kept in float32 at up to 65 of its times.

    Args:
        model: its model.
        x1: (B, ...) at t = 1, the first state.
        steps: its evaluations, at least 4.

    Attributes:
        times: the times, from 1 to 0, float64 (T,).

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.sampling.reference_solution import converged
    >>> model = Gaussian(torch.zeros(1), torch.full((1,), 0.04), sde=VPSDE())
    >>> x1 = torch.tensor([[1.0], [0.5]])
    >>> path = ReferencePath(model, x1, 64)
    >>> x0, _ = converged(model, x1, steps=64, on_state=path.keep)
    >>> bool((path.at([0.3])[0] - model.flow(x1.double(), 1.0, 0.3)).abs().max() < 1e-3)
    True
    """

    def __init__(self, model: ScoreModel, x1: Tensor, steps: int) -> None:
        self.model, grid = model, reference_grid(model.sde, steps)
        every = -(-steps // _MOST_KEPT)
        self._place = {node: k for k, node in enumerate(sorted({*range(0, steps, every), steps}))}
        self.times = grid[list(self._place)]
        self._angles, self._sizes = _angle_and_size(model, self.times)
        self._states = torch.zeros(len(self._place), *x1.shape, dtype=torch.float32, device=x1.device)
        self._states[0] = (x1 / self._sizes[0].item()).float()
        self._denoised = torch.zeros_like(self._states[1:])

    def keep(self, samples: Tensor, node: int, x: Tensor, denoised: Tensor) -> None:
        """Keep x at a time, and D at the one before, if it is one of the times; ``on_state`` of ``converged``."""
        rows = samples.to(x.device)
        if (k := self._place.get(node)) is not None:
            self._states[k, rows] = (x / self._sizes[k].item()).float()
        if (k := self._place.get(node - 1)) is not None:
            self._denoised[k, rows] = denoised.float()

    def kept(self, samples: int) -> tuple[Tensor, Tensor]:
        """The states (T, B, ...) of the first samples at ``times``, and D = E[x_0 | x_t] at all but the last."""
        sizes = self._sizes.to(self._states).reshape(-1, *(1,) * (self._states.ndim - 1))
        return self._states[:, :samples] * sizes, self._denoised[:, :samples]

    def at(self, times: Sequence[float]) -> Tensor:
        """The states (T, B, ...) at some times."""
        angle, size = _angle_and_size(self.model, torch.tensor(list(times), dtype=torch.float64, device="cpu"))
        nodes, weights = _cubic(self._angles, angle)
        found = torch.zeros(len(size), *self._states.shape[1:], dtype=torch.float32, device=self._states.device)
        for k in range(len(size)):
            for node, weight in zip(nodes[k].tolist(), weights[k].tolist(), strict=True):
                found[k].add_(self._states[node], alpha=weight * size[k].item())
        return found


def _angle_and_size(model: ScoreModel, t: Tensor) -> tuple[Tensor, Tensor]:
    """Theta and sqrt(alpha^2 + sigma^2) at times (T,), float64."""
    alpha, sigma = model.sde.marginal(t)
    alpha, sigma = alpha.double().expand_as(t), sigma.double().expand_as(t)
    return torch.atan2(sigma, alpha), torch.hypot(alpha, sigma)


def _cubic(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of each wanted position the numbers of its 4 nearest known ones and the weights of Lagrange's cubic, (T, 4).

    >>> nodes, weights = _cubic(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1.5]))
    >>> nodes.tolist(), weights.tolist()
    ([[0, 1, 2, 3]], [[-0.0625, 0.5625, 0.5625, -0.0625]])
    """
    falling = -known.contiguous()
    first = torch.searchsorted(falling, -wanted.contiguous(), right=True) - _NODES // 2
    nodes = first.clamp(0, len(known) - _NODES)[:, None] + torch.arange(_NODES, device="cpu")
    at = known[nodes]
    weights = torch.ones_like(at)
    for j in range(_NODES):
        for m in range(_NODES):
            if m != j:
                weights[:, j] *= (wanted - at[:, m]) / (at[:, j] - at[:, m])
    return nodes, weights
