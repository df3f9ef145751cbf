"""On a device that has shapes and no values, everything that mixes devices or reads a value of x fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sde import EDM, VPSDE, CosineVPSDE
from solvers import SOLVERS, Equation, ReverseProcess, solve
from solvers.fitted.pf_ode import ProbabilityFlow

FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]
UNIT = ProbabilityFlow(scale=1.0)  # with scale=None it reads a few values, to see the scale


def half(x: Tensor, t: Tensor) -> Tensor:
    assert x.device.type == t.device.type == "meta"
    return x / 2


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("nfe", [7, 8, 25])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps_never_read_the_device(name: str, nfe: int, errors: bool) -> None:
    solver = UNIT if name == "pf-ode" else SOLVERS[name]
    x = torch.zeros(3, 2, 4, device="meta")
    for sde in (VPSDE(), CosineVPSDE()):
        process = ReverseProcess(half, sde, float(solver.stochastic))
        out = solve(process, x, solver=solver, nfe=nfe, trajectory=True, errors=errors)
        assert out.x.shape == x.shape and out.x.device.type == "meta"
        assert out.nfe.device.type == "cpu" and int(out.nfe.max()) <= nfe


@pytest.mark.parametrize("name", [n for n in FIXED if Equation in SOLVERS[n].needs])
def test_equations_too(name: str) -> None:
    equation = Equation(half, (lambda x, t: t[:, None, None]) if SOLVERS[name].stochastic else None)
    out = solve(equation, torch.zeros(3, 2, 4, device="meta"), solver=name, grid=[1.0, 0.5, 0.0])
    assert out.x.device.type == "meta"


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "score", "edm"])
def test_models_do_not_read_it_either(predicts: str) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.layer(x) + t[:, None, None]
            return out

    for sde in (VPSDE(), CosineVPSDE()) if predicts in ("data", "velocity") else (VPSDE(), EDM()):
        model = ScoreModel(Network().to("meta"), sde, predicts, shape=(2, 4))
        [out] = sample_batches(model, 3, SamplingSettings(UNIT, nfe=8))
        assert out.x.device.type == "meta"
