"""A network in 16 bits, or compiled, keeps its conditions, a state in float32, and nearby samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion import VPSDE, ScoreModel, load, sample
from sde_diffusion.cli import app
from sde_diffusion.models.conditions import condition_names
from sde_diffusion.models.speed import Speed
from sde_diffusion.networks import build


def test_bfloat16_is_of_the_network_alone() -> None:
    exact = sample(load("bundled"), 8, solver="dpm++2m", nfe=6)
    model = load("bundled")
    seen: list[torch.dtype] = []
    first = next(m for m in model.network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    Speed("bf16").apply(model.network)
    x = sample(model, 8, solver="dpm++2m", nfe=6)
    assert set(seen) == {torch.bfloat16} and x.dtype == torch.float32
    error = float((x - exact).square().mean().sqrt())
    assert 1e-5 < error < 0.05


def test_conditions_stay_those_of_the_network() -> None:
    model = ScoreModel(build("mlp", shape=(2,), width=8, classes=3), VPSDE(), shape=(2,))
    before = condition_names(model)
    Speed("bf16").apply(model.network)
    assert condition_names(model) == before
    assert sample(model, 3, nfe=2, label=torch.tensor([0, 1, 2])).shape == (3, 2)


def test_a_plain_network_is_left_alone_and_a_function_is_refused() -> None:
    function = lambda x, t: x  # noqa: E731
    assert Speed().apply(function) is function
    with pytest.raises(ValueError, match="--precision and --compile need a network"):
        Speed("bf16").apply(function)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        Speed("fp8")


def test_the_record_of_samples_holds_the_precision() -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["sample", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("bundled", "--n", "8", "--nfe", "3", "--precision", "bf16", "--out", "low")
    assert json.loads(Path("low/samples.json").read_text())["speed"] == {"precision": "bf16", "compiled": False}
    assert "bit-equal to the samples of the record" in run("--record", "low/samples.json", "--out", "again")
    result = CliRunner().invoke(app, ["sample", "--record", "low/samples.json", "--precision", "fp32"])
    assert result.exit_code == 2 and "leave out --precision" in result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch._inductor itself
def test_a_compiled_network_gives_the_same_samples() -> None:
    model = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), shape=(2,))
    before = sample(model, 4, nfe=3)
    Speed(compiled=True).apply(model.network)
    torch.testing.assert_close(sample(model, 4, nfe=3), before, rtol=1e-4, atol=1e-4)
