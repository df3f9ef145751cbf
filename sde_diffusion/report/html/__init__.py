"""Reports as one HTML file each, which opens from disk and loads nothing from the internet."""

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
