r"""CFG++: guidance whose noise is that of the unconditional prediction (Chung et al. 2024, algorithm 2).

A step of ``ddim`` or ``ddpm`` from t to s removes the noise from x and adds some of it again,

    x_s = alpha_s D + k eps + S xi,      k^2 + S^2 = sigma_s^2,      eps = (x - alpha_t D) / sigma_t.

Classifier-free guidance has the guided prediction in both places; CFG++ has it in D alone, and eps is unconditional:
x_s = alpha_s (D_u + lambda (D_c - D_u)) + k eps_u + S xi. D enters with alpha_s instead of alpha_s - k alpha_t /
sigma_t, so that CFG++ is the line of guidance with a weight that depends on the step,

    w(t, s) = lambda / (1 - k alpha_t / (alpha_s sigma_t)),          for ddim  lambda / (1 - rho_s / rho_t).

The weight grows as the steps get smaller: CFG++ has no limit in continuous time, its strength is that of lambda and of
the number of steps together. It is defined for these two solvers and for no other.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.models.score_model import ScoreModel
from solvers import Solver
from solvers.diffusion.ancestral import DDIM, DDPM
from solvers.errors import InputError


class GuidedPlusPlus(Guided):
    """Classifier-free guidance with unconditional noise, for the solvers ``ddim`` and ``ddpm``.

    Args:
        model: as for ``Guided``.
        scale: lambda, from 0 (unconditional) to 1 in the paper.
        options: null, interval and guide of ``Guided``.

    Raises:
        ValueError: as ``Guided``; a rule of another kind; another solver.

    >>> from sde_diffusion import VPSDE, sample
    >>> network = lambda x, t, label: label[:, None].to(x.dtype).expand_as(x)
    >>> model = GuidedPlusPlus(ScoreModel(network, VPSDE(), shape=(1,)), scale=0.6, null={"label": 0})
    >>> sample(model, 2, solver="ddim", nfe=10, label=torch.tensor([1, 2])).shape
    torch.Size([2, 1])
    """

    def __init__(self, model: ScoreModel, scale: float, **options: Any) -> None:
        if options.get("combine") is not None:
            raise InputError("CFG++ is a rule of its own; leave out combine")
        super().__init__(model, scale, **options)
        self._times: Tensor | None = None
        self._weights: Tensor | None = None

    def for_run(self, solver: Solver, times: Tensor, eta: float) -> GuidedPlusPlus:
        """This model with the weights of a run's steps.

        Args:
            solver: ``ddim`` or ``ddpm``.
            times: of the run, float64 (steps + 1,), towards the data.
            eta: noise level of the process.

        Raises:
            ValueError: another solver, or times that run towards the noise.
        """
        if type(solver) not in (DDIM, DDPM):
            raise InputError(
                "CFG++ exchanges the noise of a step of ddim or ddpm, and other solvers have no such noise; got "
                f"{type(solver).__name__}: use solver='ddim' (--solver ddim), or plain guidance"
            )
        if times[0] < times[-1]:
            raise InputError("CFG++ is defined on the way to the data; these times run towards the noise")
        bound = copy.copy(self)
        alpha, sigma = (c.tolist() for c in self.sde.marginal(times))
        weights = []
        for i in range(len(times) - 1):
            ratio = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])  # rho_s / rho_t
            weights.append(self.scale / (1 - ratio * math.sqrt(1 - eta**2 * (1 - ratio) * (1 + ratio))))
        bound._times = times[:-1].clone()
        bound._weights = torch.tensor(weights, dtype=torch.float64, device="cpu")
        return bound

    def weight(self, t: Tensor) -> Tensor:
        """W of the step that starts at t (B,), and 1 outside the interval.

        Raises:
            ValueError: a time that starts no step of the run, or no run.
        """
        if self._times is None or self._weights is None:
            raise InputError(
                "CFG++ depends on the steps of a run: use sample(model, ...), or model.for_run(solver, times, eta)"
            )
        acts = self._acts(t)
        here = t.double().cpu()
        nearest = (here[:, None] - self._times).abs().min(1)
        if not bool((nearest.values <= 1e-9).all()):
            raise InputError(f"t = {float(here[0]):g} is no time of the run that CFG++ was made for")
        weights = self._weights[nearest.indices].to(acts.device)
        return torch.where(acts, weights, torch.ones_like(weights))
