"""Solvers as sampling functions of k-diffusion and ComfyUI."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import EDM, VPSDE, Flow, GaussianMixture
from sde_diffusion.interop import from_denoiser, sampler
from sde_diffusion.interop.comfyui_node import NODE_CLASS_MAPPINGS, register
from sde_diffusion.interop.driven_run import asked_times
from sde_diffusion.storage.solver_json import describe_solver
from solvers import SOLVERS, plan, solve
from solvers.errors import InputError, NotFoundError
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.problem import ReverseProcess

MEANS = torch.tensor([[-1.0, 0.5, 2.0], [1.0, 0.0, -1.0]])
SIGMAS = torch.cat([torch.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), 10) ** 7, torch.zeros(1)])
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]


class Denoiser(nn.Module):
    """The exact D(x, sigma) of a mixture, called with what k-diffusion passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = GaussianMixture(MEANS, 0.3, sde=EDM(1000.0))
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        self.seen.append(extra)
        return self.exact.denoise(x, sigma.double() / 1000)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FIXED)
def test_samples_are_those_of_solve(name: str) -> None:
    net, x = Denoiser(), 14.6 * torch.randn(2, 3)
    stochastic = SOLVERS[name].stochastic
    found = sampler(name)(net, x, SIGMAS, extra_args={"seed": 5})
    model = from_denoiser(net, 0.0, float(SIGMAS[0]))
    grid = (SIGMAS.double() / SIGMAS[0].double()).tolist()
    problem = model.sde.reverse(model, float(stochastic))
    expected = solve(problem, x, solver=name, grid=grid, seeds=[5, 6] if stochastic else None).x
    assert relative(found, expected) < 1e-5
    assert net.seen[0] == {"seed": 5}


@pytest.mark.parametrize("name", ["pf-ode", "unipc", "heun"])
def test_only_the_ends_and_the_number_are_kept(name: str) -> None:
    net, x = Denoiser(), 14.6 * torch.randn(2, 3)
    found = sampler(name, times="solver")(net, x, SIGMAS)
    assert len(net.seen) <= 10
    model = from_denoiser(net, 0.0, float(SIGMAS[0]))
    expected = solve(model.sde.probability_flow(model), x, solver=name, nfe=10).x
    assert relative(found, expected) < 1e-5
    # a part of the way keeps its sigmas: there are no others
    part = sampler(name, times="solver")(net, x, SIGMAS[:5])
    assert torch.equal(part, sampler(name)(net, x, SIGMAS[:5]))


def test_two_parts_make_the_whole() -> None:
    net, x = Denoiser(), 14.6 * torch.randn(2, 3, dtype=torch.float64)
    whole = sampler("ddim")(net, x, SIGMAS)
    half = sampler("ddim")(net, x, SIGMAS[:6])
    assert relative(sampler("ddim")(net, half, SIGMAS[5:]), whole) < 1e-6


def test_the_callback_sees_every_step() -> None:
    net, x, seen = Denoiser(), 14.6 * torch.randn(2, 3), []
    sampler("dpm++2m")(net, x, SIGMAS, callback=seen.append, disable=True)
    assert [step["i"] for step in seen] == list(range(10))
    torch.testing.assert_close(torch.stack([step["sigma"] for step in seen]), SIGMAS[:-1])
    torch.testing.assert_close(seen[0]["x"], x)
    torch.testing.assert_close(seen[3]["denoised"], net(seen[3]["x"], seen[3]["sigma"].expand(2)))


class CONST:
    """As ComfyUI names the sampling of flow models."""


class Comfy(nn.Module):
    """The stack of wrappers around a model in ComfyUI: guider, model, model_sampling."""

    def __init__(self) -> None:
        super().__init__()
        kind = type("ModelSampling", (CONST,), {})
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=kind()))
        self.exact = GaussianMixture(MEANS, 0.3, sde=Flow())

    def forward(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return self.exact.denoise(x, sigma.double())


def test_flow_models_have_the_straight_path() -> None:
    net, x = Comfy(), torch.randn(2, 3)
    sigmas = torch.linspace(1, 0, 9)
    found = sampler("unipc")(net, x, sigmas)
    expected = solve(net.exact.sde.probability_flow(net.exact), x, solver="unipc", grid=sigmas.double().tolist()).x
    assert relative(found, expected) < 1e-5
    with pytest.raises(InputError, match="at most 1; got 14"):
        sampler("unipc")(net, x, SIGMAS)


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [1.0], [1.0, -0.5], [1.0, 0.5, 0.5]])
def test_sigmas_that_do_not_decrease_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(InputError, match="sigmas decrease"):
        sampler("ddim")(Denoiser(), torch.randn(1, 3), torch.tensor(sigmas))


def test_a_table_that_starts_from_the_mean_runs_and_a_pipeline_refuses_it() -> None:
    net, x = Denoiser(), 14.6 * torch.randn(2, 3)
    solver = MeanStart(table_for(EDM(14.6)), tuple(MEANS.mean(0).tolist()))
    found = sampler(solver, "solver")(net, x, torch.tensor([14.6, 3.0, 2.0, 1.0, 0.5, 0.0]))
    assert len(net.seen) == 5
    model = from_denoiser(Denoiser(), 0.0, 14.6)
    expected = solve(model.sde.probability_flow(model), x, solver=solver, nfe=5).x
    assert relative(found, expected) < 1e-5
    with pytest.raises(InputError, match="tune with mean_start=False"):
        asked_times(from_path(EDM(14.6)), (3,), solver, nfe=5)


def table_for(sde: Any) -> Any:
    return compile_table(SOLVERS["unipc"], sde, 6, plan(from_path(sde), (3,), "unipc", nfe=6)[1])


def from_path(sde: Any) -> Any:
    return ReverseProcess(lambda x, t: x, sde)


@pytest.mark.parametrize("kind", ["table", "mixture", "mean"])
@pytest.mark.parametrize(
    ("sde", "times", "first", "message"),
    [
        (EDM(14.6), "solver", 80.0, "made for sigmas from 14.6, and these start at 80; start them at 14.6"),
        (EDM(80.0), "solver", 14.6, "made for sigmas from 80, and these start at 14.6"),
        (VPSDE(), "solver", 14.6, "another path than sigma = sigma_max t; tune .* sigma_min, 14.6"),
        (EDM(14.6), "sigmas", 14.6, "pass times='solver'"),
    ],
)
def test_a_table_is_for_its_range(sde: Any, times: str, first: float, message: str, kind: str) -> None:
    table = table_for(sde)
    table = MixtureOfTables((table,), (None,) * 6) if kind == "mixture" else table
    table = MeanStart(table, (0.0,) * 3) if kind == "mean" else table
    sigmas = torch.tensor([first, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0])
    sigmas = torch.cat([sigmas[:1], sigmas[2:]]) if kind == "mean" else sigmas  # an evaluation less
    with pytest.raises(InputError, match=message):
        sampler(table, times)(Denoiser(), first * torch.randn(1, 3), sigmas)
    with pytest.raises(InputError, match=f"made for {len(sigmas) - 1} evaluations, not for {len(sigmas) - 2}"):
        sampler(table, "solver")(Denoiser(), first * torch.randn(1, 3), sigmas[1:])


def test_a_table_runs_from_its_first_sigma() -> None:
    sigmas, x = torch.tensor([14.6, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0]), 14.6 * torch.randn(2, 3)
    model = from_denoiser(Denoiser(), 0.0, 14.6)
    table = table_for(EDM(14.6))
    expected = solve(model.sde.probability_flow(model), x, solver=table, nfe=6).x
    assert relative(sampler(table, "solver")(Denoiser(), x, sigmas), expected) < 1e-5


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in of ComfyUI's samplers: KSAMPLER calls its function as ComfyUI does."""

    class KSAMPLER:
        def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
            self.sampler_function, self.extra_options = sampler_function, extra_options or {}

        def sample(self, model: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor) -> Tensor:
            total = len(sigmas) - 1
            told = None
            if callback is not None:
                told = lambda v: callback(v["i"], v["denoised"], v["x"], total)  # noqa: E731
            return self.sampler_function(
                model, noise, sigmas, extra_args=extra_args, callback=told, disable=True, **self.extra_options
            )

    names = ["euler", "dpmpp_2m"]
    samplers: Any = ModuleType("comfy.samplers")
    samplers.KSAMPLER, samplers.SAMPLER_NAMES = KSAMPLER, names
    samplers.KSampler = type("KSampler", (), {"SAMPLERS": names})
    sampling = ModuleType("comfy.k_diffusion.sampling")
    for name, module in {
        "comfy": ModuleType("comfy"),
        "comfy.samplers": samplers,
        "comfy.k_diffusion": ModuleType("comfy.k_diffusion"),
        "comfy.k_diffusion.sampling": sampling,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(samplers=samplers, sampling=sampling)


def test_comfyui_lists_every_solver(comfy: SimpleNamespace) -> None:
    added = register()
    assert register() == added and len(added) == len(FIXED)
    assert ["euler", "dpmpp_2m", *added] == comfy.samplers.KSampler.SAMPLERS
    x, net = 14.6 * torch.randn(1, 3), Denoiser()
    found = comfy.sampling.sample_sdediff_dpmpp2m(net, x, SIGMAS)
    assert torch.equal(found, sampler("dpm++2m")(net, x, SIGMAS))


def test_comfyui_nodes(comfy: SimpleNamespace, tmp_path: Path) -> None:
    node = NODE_CLASS_MAPPINGS["SdediffSampler"]
    fields = node.INPUT_TYPES()["required"]
    assert fields["solver"][0] == FIXED and set(fields) == {"solver", "times", "eta"}
    (made,) = getattr(node(), node.FUNCTION)(solver="unipc", times="sigmas", eta=-1.0)
    seen, net, x = [], Denoiser(), 14.6 * torch.randn(1, 3)
    found = made.sample(net, SIGMAS, {"model_options": {}, "seed": 3}, lambda *args: seen.append(args), x)
    assert torch.equal(found, sampler("unipc")(net, x, SIGMAS))
    assert [i for i, *_ in seen] == list(range(10)) and seen[0][3] == 10

    model = from_denoiser(net, 0.0, 14.6)
    problem = model.sde.probability_flow(model)
    times = plan(problem, (3,), "unipc", nfe=6)[1]
    table = compile_table(SOLVERS["unipc"], model.sde, 6, times)
    file = tmp_path / "nfe-6.json"
    file.write_text(json.dumps({"solver": describe_solver(table)}))
    tuned = NODE_CLASS_MAPPINGS["SdediffTunedSampler"]
    (made,) = getattr(tuned(), tuned.FUNCTION)(file=str(file))
    sigmas = torch.tensor([14.6, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0])
    assert relative(made.sample(net, sigmas, {}, None, x), solve(problem, x, solver=table, nfe=6).x) < 1e-5
    with pytest.raises(NotFoundError, match="make one with sdediff tune"):
        tuned().get_sampler("nowhere.json")
