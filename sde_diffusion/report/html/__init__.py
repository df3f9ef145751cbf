"""Reports as one HTML file each, which opens from disk and asks nothing of a network."""

from sde_diffusion.report.html.page import Chart, Curve, Gallery, Page, Shown, TimeGrid
from sde_diffusion.report.html.rendering import rendered, write_page

__all__ = [
    "Chart",
    "Curve",
    "Gallery",
    "Page",
    "Shown",
    "TimeGrid",
    "rendered",
    "write_page",
]
