"""A run: the meter that counts its evaluations, its steps and solution, and how it is driven from outside."""

from solvers.run.driven import Request, evaluation_times, evaluations
from solvers.run.meter import NFEMeter
from solvers.run.solution import Solution, Status, Step

__all__ = [
    "NFEMeter",
    "Request",
    "Solution",
    "Status",
    "Step",
    "evaluation_times",
    "evaluations",
]
