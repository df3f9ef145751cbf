"""Display of results: tables as text, HTML, CSV and LaTeX, and figures of samples."""

from solvers.display.displayed import Displayed
from solvers.display.figures import samples_figure, save_figure
from solvers.display.result_table import ResultTable

__all__ = [
    "Displayed",
    "ResultTable",
    "samples_figure",
    "save_figure",
]
