"""Solvers of any ODE or SDE: Euler, Heun, Adams, embedded Runge-Kutta, and adaptive SDE."""

from solvers.classical.adams import Adams
from solvers.classical.adaptive_sde import AdaptiveSDE
from solvers.classical.butcher_tableaus import PAIRS
from solvers.classical.embedded_rk import EmbeddedRungeKutta
from solvers.classical.euler import Euler, EulerMaruyama
from solvers.classical.heun import Heun
from solvers.classical.stochastic_heun import StochasticHeun

__all__ = [
    "PAIRS",
    "Adams",
    "AdaptiveSDE",
    "EmbeddedRungeKutta",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "StochasticHeun",
]
