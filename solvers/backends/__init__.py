r"""Adapters of torchdiffeq, scipy and torchsde.

They integrate the plain drift (and diffusion) in t over each interval of the grid. Their time is
r = |t - t_start|, which only increases, and their functions are clamped to [0, |s - t|]: however
far a method probes ahead, the model never sees a time outside the interval. Network calls are
counted at the call like those of every solver, and a cap stops the run at the last accepted state.

The adaptive methods of torchdiffeq and scipy have one error norm and one step size for the whole
batch, so a sample depends on its batch, and the hardest one sets the cost of all. A sample with a
non-finite drift is removed, and the others continue from the last accepted state.
"""

from solvers.backends.interval import BackendState
from solvers.backends.ode import SCIPY, TORCHDIFFEQ, Scipy, TorchDiffEq
from solvers.backends.sde import TORCHSDE, TorchSDE

__all__ = ["SCIPY", "TORCHDIFFEQ", "TORCHSDE", "BackendState", "Scipy", "TorchDiffEq", "TorchSDE"]
