"""Solvers side by side: the same initial noise under every solver and NFE, with the error of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sde_diffusion.report.pictures import image_grid, stretched
from solvers.display.figures import new_figure
from solvers.errors import InputError


def solver_figure(made: Mapping[str, Mapping[int, Tensor]], reference: Tensor, *, own_units: bool = False) -> Any:
    """A row for each solver, a column for each NFE, and the reference solution at the right.

    The title of a panel is the mean RMS distance of its samples to the reference solution of the same noise.

    Args:
        made: samples (B, C, H, W) with 1 or 3 channels, or points (B, 2), by solver and NFE.
        reference: the same samples, solved with many steps.
        own_units: whether images have other units than [-1, 1].

    Raises:
        ValueError: samples that are neither images nor points in 2-D.
    """
    points = reference.ndim == 2 and reference.shape[1] == 2
    if not points and not (reference.ndim == 4 and reference.shape[1] in (1, 3)):
        raise InputError(
            f"solvers are shown on images (B, 1 or 3, H, W) or points (B, 2); got {tuple(reference.shape)}"
        )
    budgets = sorted({nfe for row in made.values() for nfe in row})
    columns = len(budgets) + 1
    figure = new_figure(2.1 * columns, 2.35 * len(made))
    panels = figure.subplots(len(made), columns, squeeze=False)
    reach = 1.1 * float(reference.abs().max())
    for number, (solver, row) in enumerate(made.items()):
        for axes, nfe in zip(panels[number], [*budgets, None], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            x = reference if nfe is None else row.get(nfe)
            if x is None:
                axes.set_axis_off()
                continue
            _panel(axes, x, points, reach, own_units)
            if nfe is None:
                axes.set_title("reference", fontsize=9)
            else:
                error = (x - reference).double().square().flatten(1).mean(1).sqrt().mean()
                axes.set_title(f"{nfe} NFE, error {float(error):.3g}", fontsize=9)
        panels[number][0].set_ylabel(solver, fontsize=10)
    return figure


def _panel(axes: Any, x: Tensor, points: bool, reach: float, own_units: bool) -> None:
    if points:
        axes.scatter(*x.double().cpu().numpy().T, s=2, linewidths=0)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        return
    shown = x.nan_to_num().clamp(-1e6, 1e6)
    grid = np.asarray(image_grid(stretched(shown) if own_units else shown))
    axes.imshow(grid, cmap="gray" if grid.ndim == 2 else None, vmin=0, vmax=255, interpolation="nearest")
