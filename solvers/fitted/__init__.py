"""Solvers with fitted coefficients: tables, also with noise, mixtures of tables, and the default `pf-ode`."""

from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.noisy_table import NoisyTable, renoised
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.fitted.table import Row, Table

__all__ = [
    "MeanStart",
    "MixtureOfTables",
    "NoisyTable",
    "ProbabilityFlow",
    "Row",
    "Table",
    "compile_table",
    "renoised",
]
