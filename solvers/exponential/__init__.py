"""Exponential integrators: multistep (Adams), single-step (Runge-Kutta), and variable order."""

from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.runge_kutta import SingleStep
from solvers.exponential.variable_order import VariableOrder

__all__ = [
    "ExponentialAdams",
    "SingleStep",
    "VariableOrder",
]
