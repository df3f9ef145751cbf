"""A figure of samples of any kind: images as a grid, points as a cloud, signals as lines, vectors as marginals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.report.grid_of_classes import labelled_grid
from sde_diffusion.report.pictures import image_grid, points_figure, stretched

LINES, MARGINALS, BINS = 8, 12, 40  # signals, entries of a vector, and bins of a histogram that are drawn


def sample_image(
    x: Tensor,
    kind: str,
    reference: Tensor | None = None,
    classes: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> bytes | None:
    """The samples as a PNG file; None for a shape that has no figure (volumes, images of 2 or 4 channels).

    Args:
        x: (B, ...), in units of the data.
        kind: "image", "vector" or "signal".
        reference: data to draw behind points and marginals.
        classes: the class of each sample; images of one class stand together.
        names: names of the classes.

    >>> sample_image(torch.zeros(4, 1, 8, 8), "image")[1:4]
    b'PNG'
    """
    if kind == "image":
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            return None
        several = classes is not None and len(set(classes)) > 1
        shown = stretched(x.nan_to_num())
        return png(labelled_grid(shown, list(classes or []), names) if several else image_grid(shown))
    finite = x[x.flatten(1).isfinite().all(1)]
    if not len(finite):
        return None
    if x.ndim == 2 and x.shape[1] == 2:
        return figure_png(points_figure(finite, reference))
    if x.ndim == 2:
        return figure_png(marginals_figure(finite, reference))
    return figure_png(lines_figure(finite)) if x.ndim == 3 else None


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def figure_png(figure: Any, dpi: int = 100) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def lines_figure(x: Tensor) -> Any:
    """Signals (B, C, L) as lines: a panel for each of the first signals, a line for each channel."""
    shown = x[:LINES].double().cpu()
    figure, panels = _panels(len(shown), 2, 4.0, 1.4)
    for panel, signal in zip(panels, shown, strict=False):
        for channel in signal:
            panel.plot(channel.numpy(), linewidth=1)
        panel.tick_params(labelsize=7)
    return figure


def marginals_figure(x: Tensor, reference: Tensor | None = None) -> Any:
    """Histograms of the first entries of vectors (B, D), over those of the reference in grey."""
    count = min(x.shape[1], MARGINALS)
    figure, panels = _panels(count, 4, 2.0, 1.6)
    for k, panel in enumerate(panels[:count]):
        own = x[:, k].double().cpu()
        both = own if reference is None else reference[:, k].double().cpu()
        low, high = float(both.quantile(0.001)), float(both.quantile(0.999))
        edges = torch.linspace(low, high if high > low else low + 1, BINS + 1).numpy()
        if reference is not None:
            panel.hist(both.numpy(), bins=edges, density=True, color="0.8")
        panel.hist(own.clamp(low, high).numpy(), bins=edges, density=True, histtype="step", color="tab:blue")
        panel.set_title(f"entry {k}", fontsize=8)
        panel.tick_params(labelsize=6)
    return figure
