"""Solvers for reverse diffusion processes, and for any ODE or SDE.

``SOLVERS`` is the table of all of them; adding one is a file and a line here.
"""

from __future__ import annotations

from solvers.backends import Scipy, TorchDiffEq, TorchSDE
from solvers.brownian_path import BrownianPath
from solvers.classical.adams import Adams
from solvers.classical.adaptive_sde import AdaptiveSDE
from solvers.classical.butcher_tableaus import PAIRS
from solvers.classical.embedded_rk import EmbeddedRungeKutta
from solvers.classical.euler import Euler, EulerMaruyama
from solvers.classical.heun import Heun
from solvers.classical.stochastic_heun import StochasticHeun
from solvers.diffusion.ancestral import DDIM, DDPM
from solvers.diffusion.annealed_langevin import AnnealedLangevin
from solvers.diffusion.edm import EDMHeun
from solvers.diffusion.er_sde import ERSDE
from solvers.diffusion.ipndm import IPNDM
from solvers.diffusion.predictor_corrector import PredictorCorrector
from solvers.diffusion.resampling import Resampling
from solvers.diffusion.restart import Restart
from solvers.diffusion.reverse_diffusion import ReverseDiffusion
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.runge_kutta import SingleStep
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.grids import GRIDS, make_grid
from solvers.integrate import solve, steps
from solvers.planning import plan
from solvers.problem import Equation, ReverseProcess, Scales
from solvers.registry import SOLVERS, find
from solvers.run.driven import evaluation_times, evaluations
from solvers.run.solution import Solution, Step
from solvers.solver import Solver

SOLVERS.update(
    {
        "euler": Euler(),
        "ddim": DDIM(),
        "heun": Heun(),
        "edm": EDMHeun(),
        "dpm-solver-2": SingleStep(2, form="noise"),
        "dpm-solver-3": SingleStep(3, form="noise"),
        "dpm++2s": SingleStep(2, form="data"),
        "dpm++3s": SingleStep(3, form="data"),
        "ipndm": IPNDM(),
        "adams": Adams(),
        "dpm++2m": ExponentialAdams(2, weights="bh2", source="Lu et al. 2022b, algorithm 2"),
        "dpm++3m": ExponentialAdams(3, source="Lu et al. 2022b (3M, with its order)"),
        "deis": ExponentialAdams(
            3, form="noise", variable="time", grid="quadratic", source="Zhang & Chen 2023, eq. 15 (tAB2)"
        ),
        "unipc": ExponentialAdams(
            2, corrector=True, weights="bh2", source="Zhao et al. 2023, algorithms 5-8 (UniPC-2, bh2)"
        ),
        "rk23": EmbeddedRungeKutta(PAIRS["rk23"], rtol=1e-3),
        "rk45": EmbeddedRungeKutta(),
        "tsit5": EmbeddedRungeKutta(PAIRS["tsit5"]),
        "torchdiffeq": TorchDiffEq(),
        "scipy": Scipy(),
        "euler-maruyama": EulerMaruyama(),
        "exponential-euler-maruyama": ExponentialAdams(
            1, form="noise", sde=True, source="Lu et al. 2022b, eq. 18 (SDE-DPM-Solver-1)"
        ),
        "reverse-diffusion": ReverseDiffusion(),
        "stochastic-heun": StochasticHeun(),
        "ddpm": DDPM(),
        "dpm++2m-sde": ExponentialAdams(2, sde=True, weights="bh2", source="Lu et al. 2022b, eq. 19"),
        "dpm++3m-sde": ExponentialAdams(3, sde=True, source="Lu et al. 2022b, extended to 3M"),
        "sa": ExponentialAdams(3, corrector=True, sde=True, noisy=(0.2, 0.8), source="Xue et al. 2023, algorithm 1"),
        "er-sde": ERSDE(),
        "restart": Restart(),
        "pc": PredictorCorrector(),
        "repaint": Resampling(),
        "annealed-langevin": AnnealedLangevin(),
        "adaptive-sde": AdaptiveSDE(),
        "sde": ExponentialAdams(
            2,
            form="velocity",
            variable="angle",
            sde=True,
            grid="quadratic",
            quiet_below=8.0,
            source="solvers/exponential/adams.py (velocity form)",
        ),
        "torchsde": TorchSDE(),
        "pf-ode": ProbabilityFlow(),
    }
)


__all__ = [
    "GRIDS",
    "SOLVERS",
    "BrownianPath",
    "Equation",
    "ReverseProcess",
    "Scales",
    "Solution",
    "Solver",
    "Step",
    "evaluation_times",
    "evaluations",
    "find",
    "make_grid",
    "plan",
    "solve",
    "steps",
]
