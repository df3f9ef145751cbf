"""Every solver gives the same samples whatever torch's default device, autocast and compiler do around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import solvers as package
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import SDES, VPSDE, make_sde
from solvers import SOLVERS, solve

MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.0, -1.0]])
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def drawn(name: str, model: ScoreModel | None = None) -> Tensor:
    """Samples of a mixture by a solver, on a copy that shares no cache with earlier calls."""
    model = model or GaussianMixture(MEANS, 0.1, sde=VPSDE())
    eta = float(SOLVERS[name].stochastic)
    nfe = None if SOLVERS[name].adaptive else 24
    return solve(model.sde.reverse(model, eta), X, solver=name, nfe=nfe).x


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A default device that has no values: whatever is made there by mistake cannot be used."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_default_device_changes_nothing(name: str) -> None:
    plain = drawn(name)
    model = GaussianMixture(MEANS, 0.1, sde=VPSDE(beta_max=20.5))  # no grid of it is known yet
    torch.set_default_device("meta")
    try:
        assert torch.equal(drawn(name), plain)
        first = drawn(name, model)
    finally:
        torch.set_default_device(None)
    assert torch.equal(first, drawn(name, model))


@pytest.mark.parametrize("name", SDES)
def test_processes_do_not_depend_on_it(name: str, elsewhere: None) -> None:
    sde = make_sde(name)
    alpha, sigma = sde.marginal(0.5)
    assert alpha.device.type == sigma.device.type == "cpu"
    assert abs(float(sde.time(sde.half_log_snr(0.5))) - 0.5) < 1e-6
    assert sde.prior((2, 3), seeds=range(2)).device.type == "cpu"


def test_sampling_and_exact_models_do_not_depend_on_it(elsewhere: None) -> None:
    model = GaussianMixture(MEANS, 0.1, sde=VPSDE())
    assert sample(model, 3, nfe=5).isfinite().all()
    assert model.draw(4).shape == (4, 2) and model.log_prob(X, torch.full((5,), 0.5, device="cpu")).shape == (5,)
    assert (
        Gaussian(MEANS[0], torch.ones(2, device="cpu"), sde=VPSDE()).log_prob(X, torch.ones(5, device="cpu")).sum() < 0
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_exact_models_are_exact_under_autocast(name: str) -> None:
    plain = drawn(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(drawn(name), plain)


def test_densities_are_exact_under_autocast_and_in_half_precision() -> None:
    model, t = GaussianMixture(MEANS, 0.1, sde=VPSDE()), torch.full((5,), 0.3)
    plain = model.log_prob(X, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.log_prob(X, t), plain)
    half = X.to(torch.bfloat16)
    assert torch.equal(model.network(half, t), model.network(half.float(), t).to(torch.bfloat16))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x) * t[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pf-ode", "dpm++2m", "ddpm", "rk45"])
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_function_around_solve_runs_as_it_is(name: str) -> None:
    model = ScoreModel(Net(), VPSDE(), shape=(2,))
    with torch.no_grad():
        plain = drawn(name, model)
        torch._dynamo.reset()
        around = torch.compile(lambda x: drawn(name, model) + 0 * x, backend="eager")
        assert torch.equal(around(X), plain)
        eta = float(SOLVERS[name].stochastic)
        nfe = None if SOLVERS[name].adaptive else 24
        compiled = torch.compile(solve, backend="eager")
        assert torch.equal(compiled(model.sde.reverse(model, eta), X, solver=name, nfe=nfe).x, plain)
        whole = ScoreModel(torch.compile(Net(), backend="eager"), VPSDE(), shape=(2,))
        assert torch.equal(drawn(name, whole), plain)


MAKERS = {"tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "logspace", "eye"} | {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "scalar_tensor",
}


def without_device(source: str) -> list[int]:
    """The lines on which a tensor is made on whatever the default device is."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in MAKERS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and not any(keyword.arg in ("device", None) for keyword in call.keywords)
    ]


@pytest.mark.parametrize("folder", ["solvers", "sde_diffusion/sde", "sde_diffusion/sampling"])
def test_every_tensor_is_made_on_a_named_device(folder: str) -> None:
    root = Path(str(package.__file__)).parent.parent / folder
    found = {str(p.relative_to(root)): lines for p in root.rglob("*.py") if (lines := without_device(p.read_text()))}
    assert found == {}
    assert without_device("x = torch.zeros(3)\ny = torch.zeros(3, device=x.device)") == [1]
