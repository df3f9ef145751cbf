"""The tilted laws, and the committed table, whose figures for the pair are known from the linear flow."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import guidance_laws as laws
from sde_diffusion import sample
from sde_diffusion.guidance import Guided


def committed() -> dict[tuple[str, str, int], dict[str, list[float]]]:
    rows = json.loads((laws.RESULTS / "guidance_laws.json").read_text())
    return {(r["problem"], r["method"] + " " + r["solver"], r["nfe"]): r for r in rows if "solver" in r}


def guided_flow(w: float) -> tuple[float, float]:
    """Mean and standard deviation at t = 0 of the guided probability flow of the pair, by fine integration."""
    n = 20_000
    times = torch.linspace(1, 1e-6, n + 1, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = laws.SDE(times)

    def drift(k: int, x: float, offset: float) -> float:
        a, s = float(alpha[k]), float(sigma[k])
        free = a / (a * a + s * s) * x
        given = offset + a * 0.25 / (a * a * 0.25 + s * s) * (x - a * offset)
        d = free + w * (given - free)
        return float(dalpha[k]) * d + float(dsigma[k]) * (x - a * d) / s

    def end(x: float, offset: float) -> float:
        for k in range(n):
            h = float(times[k + 1] - times[k])
            first = drift(k, x, offset)
            x += h / 2 * (first + drift(k + 1, x + h * first, offset))
        return x

    return end(0.0, 1.0), end(1.0, 0.0)  # the flow is affine: its offset and its slope


@pytest.mark.slow
def test_the_figures_of_plain_guidance_are_those_of_the_linear_flow() -> None:
    mean, std = guided_flow(2.0)
    row = committed()["Gaussian pair", "classifier-free guidance pf-ode", 40]
    assert row["mean"][1] == pytest.approx(mean, abs=0.006) and row["std"][1] == pytest.approx(std, abs=0.004)


def test_the_figures_that_are_known_are_in_the_table() -> None:
    rows = committed()
    ode, sde = (rows["Gaussian pair", f"classifier-free guidance {s}", n] for s, n in laws.SOLVERS.items())
    assert ode["mean"][1] == pytest.approx(1.380, abs=0.01) and sde["mean"][1] == pytest.approx(1.251, abs=0.01)
    plain = rows["Gaussian pair", "conditional law, no guidance pf-ode", 20]
    assert plain["mean"][0] <= 1.0 <= plain["mean"][2] and plain["std"][0] <= 0.5 <= plain["std"][2]
    for key, row in rows.items():
        assert all(row[name][0] <= row[name][1] <= row[name][2] for name in ("mean", "std")), key


def test_without_guidance_the_tilted_law_is_the_conditional_one() -> None:
    assert laws.tilted_pair(1.0) == {"mean": 1.0, "std": 0.5}
    above = 0.5 * (1 + math.erf(2 / math.sqrt(2)))
    found = laws.tilted_mixture(1.0)
    assert found["weight"] == pytest.approx(0.8 * above + 0.2 * (1 - above), abs=1e-5)
    assert found["mean"] == pytest.approx(1.0, abs=1e-6) and found["std"] == pytest.approx(0.5, abs=1e-4)


def test_a_guided_sample_is_reproduced() -> None:
    model, _ = laws.pair()
    label = torch.ones(200, dtype=torch.int64)
    x = sample(Guided(model, 2.0, laws.NONE), 200, nfe=40, label=label).double()
    assert float(x.mean()) == pytest.approx(1.378, abs=0.02)
    assert laws.interval(laws.of_pair, x)["std"][1] == pytest.approx(0.251, abs=0.01)
