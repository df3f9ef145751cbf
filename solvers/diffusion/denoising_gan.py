r"""Sampling a denoising diffusion GAN (Xiao, Kreis & Vahdat 2022): few steps with a multimodal denoiser.

The generator draws x_0 ~ p(x_0 | x_t) with a latent z, and the step is a draw from the posterior of the forward
process given that x_0,

    x_0 = G(x_t, z, t),   z ~ N(0, I),       x_s ~ q(x_s | x_t, x_0),

which is the transition of DDPM. With the mean E[x_0 | x_t] in place of the draw, a few large steps lose the modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import ReverseProcess, batch_times
from solvers.solver import Solver


@dataclass(frozen=True)
class DenoisingGANSampler(Solver):
    """The sampler of a denoising diffusion GAN; one evaluation of the generator a step.

    Args:
        times: those that the generator was trained for, from 1 to 0.
        latent: length of z, which the network receives as ``context``.

    Raises:
        ValueError: fewer than two times, times that do not fall from 1 to 0, or no latent.

    >>> DenoisingGANSampler((1.0, 0.5, 0.0), 8).evaluations(steps=2)
    2
    """

    times: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)
    latent: int = 16
    order = 0
    stochastic = True
    owns_last_step = True
    needs = (ReverseProcess,)
    source = "Xiao, Kreis & Vahdat 2022, section 3"

    def __post_init__(self) -> None:
        falling = all(s < t for t, s in pairwise(self.times))
        if len(self.times) < 2 or not falling or (self.times[0], self.times[-1]) != (1.0, 0.0):
            raise InputError(f"the times of a denoising GAN fall from 1 to 0; got {self.times}")
        if self.latent < 1:
            raise InputError(f"a denoising GAN has a latent of length 1 at least; got {self.latent}")

    @property
    def grid(self) -> tuple[float, ...]:
        """The times of its training."""
        return self.times

    def steps_for(self, evaluations: int, finish: bool = True) -> int:
        """The number of steps of the training.

        Raises:
            ValueError: another NFE.
        """
        if evaluations != len(self.times) - 1:
            raise InputError(
                f"this generator was trained for {len(self.times) - 1} evaluations, not for {evaluations}; give it "
                f"nfe = {len(self.times) - 1}, or train one for this NFE"
            )
        return evaluations

    def init(self, problem: ReverseProcess, times: Tensor) -> None:
        """No state.

        Raises:
            ValueError: another grid than that of the training.
        """
        if tuple(times.tolist()) != self.times:
            raise InputError("a denoising GAN has the times of its training; leave out the grid")

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """A draw of x_0, and a draw of x_s given it."""
        z = noise.independent(x.new_empty(len(x), self.latent), t, 1)
        x0 = problem.model(x, batch_times(t, x), context=z, **problem.condition)
        if float(problem.path(s).sigma) == 0:
            return x0, s, state
        return ancestral_step(problem, x, x0, t, s, noise.independent(x, t, 2), eta=1.0), s, state
