r"""Averages of any width after training, from snapshots of power averages.

A power average of step s and exponent gamma is sum_j p(j) w_j over the weights w_j of the steps j <= s with

    p(j) = (j^(gamma+1) - (j-1)^(gamma+1)) / s^(gamma+1).

Averages are linear in the weights: if a combination sum_i c_i p_i of saved profiles approximates another profile p,
the same combination of the saved tensors approximates its average. The c_i are the least-squares
solution of sum_i c_i p_i = p (Karras et al. 2024, section 3.2). Unlike in the paper, the profiles are
those of the discrete updates instead of their continuous limit, and the c_i sum to 1: the common part of all weights
stays unchanged, while a sum of 0.996 would shrink the whole network by 0.4 %.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.atomic_folder import CheckpointError, read_state, unpack
from sde_diffusion.storage.checkpoint import rebuild
from sde_diffusion.storage.run_folder import snapshots
from sde_diffusion.training.ema import gamma_of
from solvers.errors import InputError


def profile(step: int, width: float, last: int) -> np.ndarray:
    """Coefficients of the weights of steps 1..last in the power average of ``step``: float64, of sum 1.

    >>> profile(2, 0.288, 3).round(3)
    array([0.495, 0.505, 0.   ])
    """
    edges = np.arange(step + 1) / step
    return np.pad(np.diff(edges ** (gamma_of(width) + 1)), (0, last - step))


def coefficients(saved: list[tuple[int, float]], step: int, width: float) -> tuple[np.ndarray, float]:
    """Coefficients that combine saved averages, given as (step, width), into another average.

    Returns:
        The coefficients, and the relative error: the distance between the combined and the requested profile over the
        norm of the requested profile.

    >>> factors, error = coefficients([(100, 0.05), (100, 0.10)], 100, 0.05)
    >>> factors.round(6).tolist(), error < 1e-12
    ([1.0, 0.0], True)
    """
    last = max(step, *(s for s, _ in saved))
    basis = np.stack([profile(s, w, last) for s, w in saved], axis=1)
    wanted = profile(step, width, last)
    # The last coefficient is 1 minus the others: only differences to the last profile are free.
    anchor = basis[:, -1]
    others = np.linalg.lstsq(basis[:, :-1] - anchor[:, None], wanted - anchor, rcond=1e-12)[0]
    factors = np.append(others, 1 - others.sum())
    return factors, float(np.linalg.norm(basis @ factors - wanted) / np.linalg.norm(wanted))


def reconstruct(
    run: str | os.PathLike[str],
    width: float,
    *,
    step: int | None = None,
    network: nn.Module | None = None,
) -> tuple[ScoreModel, float]:
    """The model of a run with an average of any width, made after training.

    Args:
        run: the folder of a run with ``ema_widths``.
        width: standard deviation of the average as a share of the training time, such as 0.07.
        step: the step at which the average ends; the last snapshot by default.
        network: needed if the run has a network outside ``NETWORKS``.

    Returns:
        The model in evaluation mode, and the relative error of the profile: below 0.1 it is close to the average
        requested; averages narrower than the saved ones cannot be made.

    Raises:
        ValueError: a width or step out of range.
        CheckpointError: the run has no snapshots, or an incomplete one.
    """
    found = snapshots(Path(run))
    if not found:
        raise CheckpointError(
            f"{run} has no snapshots: train with power averages, such as ema_widths=[0.05, 0.1] (--ema-width 0.05 "
            "--ema-width 0.1)"
        )
    states = [read_state(folder) for folder in found]
    steps = [state["step"] for state in states]
    last = max(steps) if step is None else step
    if not 1 <= last <= max(steps):
        raise InputError(f"step must be from 1 to {max(steps)}, the last snapshot of {run}; got {last}")
    saved = [(s, w, f) for s, state, f in zip(steps, states, found, strict=True) for w in state["widths"] if s <= last]
    if not saved:
        raise InputError(f"step {last} comes before the first snapshot of {run}, {min(steps)}; choose a later one")
    factors, error = coefficients([(s, w) for s, w, _ in saved], last, width)
    total: dict[str, Tensor] = {}
    newest: dict[str, Tensor] = {}
    for factor, (_, w, folder) in zip(factors, saved, strict=True):
        newest = unpack(folder / f"{file_of(w)}.safetensors")
        for name, value in newest.items():
            if value.is_floating_point():
                total[name] = total.get(name, torch.zeros_like(value, dtype=torch.float64)) + factor * value.double()
    model = rebuild(states[-1]["model"], network)
    own = model.network.state_dict()
    model.network.load_state_dict({n: total[n].to(own[n].dtype) if n in total else newest[n] for n in own})
    return model.eval(), error


def file_of(width: float) -> str:
    """The file name of a power average, without suffix.

    >>> file_of(0.1)
    'power-0.1'
    """
    return f"power-{width:g}"
