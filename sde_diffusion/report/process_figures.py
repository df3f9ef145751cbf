"""Figures of a process and a model: schedules, samples on their way, the score field, trajectories.

Each function returns a matplotlib figure; ``solvers.display.save_figure`` writes it as PNG, SVG or PDF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from solvers.display.figures import new_figure
from solvers.errors import InputError


def schedule_figure(processes: Mapping[str, SDE]) -> Any:
    """The signal alpha^2, the noise rate g^2 and log10 SNR of processes against t."""
    figure = new_figure(11, 3.2)
    panels = figure.subplots(1, 3)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)[1:-1]
    for name, sde in processes.items():
        alpha, sigma = sde.marginal(t)
        panels[0].plot(t.numpy(), alpha.square().numpy(), label=name)
        panels[1].plot(t.numpy(), sde.g(t).square().numpy(), label=name)
        panels[2].plot(t.numpy(), (2 * torch.log10(alpha / sigma)).numpy(), label=name)
    for axes, title in zip(
        panels,
        (r"signal $\alpha(t)^2$", r"noise rate $g(t)^2$", r"$\log_{10}$ SNR $=\log_{10}\alpha^2/\sigma^2$"),
        strict=True,
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("t (0 data, 1 noise)")
        axes.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[0].legend(fontsize=8)
    return figure


def strip_figure(rows: Mapping[str, Tensor], times: Sequence[float]) -> Any:
    """Samples at several times: a row for each entry, a column for each time.

    Args:
        rows: by title, (K, B, C, H, W) images, of which the first sample is shown, or (K, B, 2) points.
        times: K times, the headings of the columns.

    Raises:
        ValueError: samples that are neither images nor points in 2-D.
    """
    columns = len(times)
    figure = new_figure(1.3 * columns + 0.6, 1.45 * len(rows) + 0.2)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for number, (row, (title, states)) in enumerate(zip(panels, rows.items(), strict=True)):
        points = states.ndim == 3 and states.shape[-1] == 2
        if not points and not (states.ndim == 5 and states.shape[2] in (1, 3)):
            raise InputError(
                f"a strip shows images (K, B, 1 or 3, H, W) or points (K, B, 2); got {tuple(states.shape)}"
            )
        for axes, state, time in zip(row, states, times, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if points:
                x, y = state.double().cpu().numpy().T
                axes.scatter(x, y, s=1, linewidths=0)
                reach = 1.1 * float(states.abs().max())
                axes.set_xlim(-reach, reach)
                axes.set_ylim(-reach, reach)
                axes.set_aspect("equal")
            else:
                image = ((state[0] + 1) / 2).clamp(0, 1).cpu().movedim(0, -1).float().numpy()
                grey = image.shape[-1] == 1
                axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
            if number == 0:
                axes.set_title(f"t = {time:.2g}", fontsize=8)
        row[0].set_ylabel(title, fontsize=9)
    return figure


def score_figure(score: Callable[[Tensor, Tensor], Tensor], sde: SDE, data: Tensor, times: Sequence[float]) -> Any:
    """Arrows of sigma(t) times the score in 2-D, over samples of p_t.

    Args:
        score: (x, t) -> grad log p_t(x), x (B, 2) and t (B,).
        sde: the process.
        data: samples (N, 2) of the data.
        times: one panel each.

    Raises:
        ValueError: data of another shape.
    """
    if data.ndim != 2 or data.shape[1] != 2:
        raise InputError(
            f"the score field needs data in 2-D (N, 2); got {tuple(data.shape)}: take a model of points, such as one "
            "of 'sdediff train --data moons'"
        )
    figure = new_figure(3.1 * len(times), 3.3)
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(data.shape, generator=generator, dtype=data.dtype)
    for k, time in enumerate(times):
        axes = figure.add_subplot(1, len(times), k + 1, aspect="equal")
        noised = sde.perturb(data, time, eps)
        reach = 1.05 * float(noised.abs().quantile(0.995))
        u = torch.linspace(-reach, reach, 19)
        grid = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1).reshape(-1, 2)
        sigma = float(sde.marginal(time)[1])
        with torch.no_grad():
            arrows = sigma * score(grid, torch.full((len(grid),), time, dtype=torch.float64))
        axes.scatter(*noised[:2000].double().numpy().T, s=1, color="0.8", linewidths=0)
        axes.quiver(*grid.double().numpy().T, *arrows.double().numpy().T, angles="xy", width=0.004, color="tab:blue")
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_title(rf"$\sigma\nabla\log p_t$, t = {time:.2g}", fontsize=10)
    return figure


def trajectory_figure(trajectory: Tensor, times: Tensor, title: str) -> Any:
    """Paths of samples from noise to data.

    Args:
        trajectory: (steps + 1, B, 2) in 2-D, or (steps + 1, B, ...) of which one entry is drawn against t.
        times: (steps + 1,).
        title: the heading.
    """
    figure = new_figure(4.6, 4.4)
    axes = figure.add_subplot()
    path = trajectory.double().cpu()
    if path.ndim == 3 and path.shape[-1] == 2:
        for line in path.movedim(1, 0).numpy():
            axes.plot(line[:, 0], line[:, 1], lw=0.6, color="tab:blue", alpha=0.5)
        for state, colour, label in ((path[0], "0.5", "noise"), (path[-1], "tab:red", "data")):
            axes.scatter(*state.numpy().T, s=8, color=colour, label=label, zorder=3, linewidths=0)
        axes.set_aspect("equal")
        axes.legend(fontsize=8)
    else:
        flat = path.flatten(2)
        middle = flat[..., flat.shape[-1] // 2]
        axes.plot(times.numpy(), middle.numpy(), lw=0.7, color="tab:blue", alpha=0.6)
        axes.set_xlabel("t")
        axes.set_ylabel("one entry of x")
        axes.invert_xaxis()
    axes.set_title(title, fontsize=10)
    return figure
