"""Rules of guidance other than the line, autoguidance, nulls row by row, conditions that guidance leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDM, VPSDE, Gaussian, Guided, ScoreModel, sample
from sde_diffusion.guidance import WithNull, projected, rescaled
from solvers import solve

SDE = VPSDE()


def network(x: Tensor, t: Tensor, text: Tensor, size: Any = None, extra: dict[str, Any] | None = None) -> Tensor:
    """A noise prediction that depends on everything it is given, row by row."""
    shift = text.mean(1, keepdim=True)
    if size is not None:
        shift = shift + size[:, None]
    if extra is not None:
        shift = shift + extra["rows"].sum(1, keepdim=True) * extra["factor"] + extra["shared"].mean()
    return torch.tanh(x + shift)


MODEL = ScoreModel(network, SDE, shape=(3,))
TEXT = torch.arange(10.0).reshape(5, 2)
NEGATIVE = -0.3 * TEXT - 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7])
def test_negative_prompts_follow_their_samples_through_the_batches(batch_size: int) -> None:
    guided = Guided(MODEL, 3.0, null={"text": NEGATIVE})
    whole = sample(guided, 5, nfe=8, text=TEXT)
    torch.testing.assert_close(sample(guided, 5, nfe=8, batch_size=batch_size, text=TEXT), whole, rtol=1e-5, atol=1e-6)
    one = [sample(Guided(MODEL, 3.0, null={"text": NEGATIVE[k : k + 1]}), 5, nfe=8, text=TEXT)[k] for k in range(5)]
    torch.testing.assert_close(whole, torch.stack(one), rtol=1e-5, atol=1e-6)
    pairs = sample(Guided(MODEL, 3.0), 5, nfe=8, batch_size=batch_size, text=WithNull(TEXT, NEGATIVE))
    torch.testing.assert_close(pairs, whole, rtol=1e-5, atol=1e-6)


def test_null_names_only_what_guidance_replaces() -> None:
    size = torch.linspace(0, 1, 5)
    extra = {"rows": torch.ones(5, 2), "factor": 0.5, "shared": torch.ones(7)}
    guided = Guided(MODEL, 2.0, null={"text": 0.0})
    x, t = torch.randn(5, 3), torch.full((5,), 0.5)
    seen = guided.noise(x, t, text=TEXT, size=size, extra=extra)
    free = network(x, t, torch.zeros_like(TEXT), size, extra)
    torch.testing.assert_close(seen, free + 2 * (network(x, t, TEXT, size, extra) - free))
    inner = Guided(MODEL, 2.0, null={"text": 0.0, "extra": {"rows": 0.0}})
    free = network(x, t, torch.zeros_like(TEXT), size, {**extra, "rows": torch.zeros(5, 2)})
    expected = free + 2 * (network(x, t, TEXT, size, extra) - free)
    torch.testing.assert_close(inner.noise(x, t, text=TEXT, size=size, extra=extra), expected)
    with pytest.raises(ValueError, match=r"needs a condition \(text\)"):
        guided.noise(x, t, size=size)


@pytest.mark.parametrize(("solver", "nfe"), [("pf-ode", 20), ("rk23", None)])
def test_conditions_that_are_no_batch_tensors_pass_through(solver: str, nfe: int | None) -> None:
    extra = {"rows": torch.randn(4, 2), "factor": 0.5, "shared": torch.ones(7)}
    x = sample(MODEL, 4, nfe=nfe, solver=solver, batch_size=3, text=TEXT[:4], extra=extra)
    for k in range(4):
        row = {**extra, "rows": extra["rows"][k : k + 1]}
        alone = solve(
            SDE.probability_flow(MODEL, text=TEXT[k : k + 1], extra=row),
            SDE.prior((1, 3), seeds=[k]),
            solver=solver,
            nfe=nfe,
        )
        torch.testing.assert_close(x[k : k + 1], alone.x, rtol=1e-5, atol=1e-6)


def line(w: float) -> Any:
    return lambda conditional, free, x, t: free + w * (conditional - free)


@pytest.mark.parametrize("on", ["data", "output"])
@pytest.mark.parametrize("interval", [None, (0.3, 5.0)])
@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "score"])
def test_the_line_as_a_rule_is_classifier_free_guidance(predicts: str, interval: Any, on: str) -> None:
    model = ScoreModel(network, SDE, predicts)
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.02, 0.98, 5, dtype=torch.float64)
    null = {"text": 0.0}
    expected = Guided(model, 3.0, null, interval).denoise(x, t, text=TEXT.double())
    found = Guided(model, null=null, interval=interval, combine=line(3.0), on=on).denoise(x, t, text=TEXT.double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_rescaled_has_the_spread_of_the_conditional_prediction() -> None:
    conditional, free = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    full = rescaled(7.5, phi=1.0)(conditional, free, conditional, torch.zeros(4))
    torch.testing.assert_close(full.std((1, 2, 3)), conditional.std((1, 2, 3)))
    plain = rescaled(7.5, phi=0.0)(conditional, free, conditional, torch.zeros(4))
    torch.testing.assert_close(plain, free + 7.5 * (conditional - free))


def test_projected_moves_across_the_conditional_prediction_only_and_by_a_bounded_amount() -> None:
    conditional, free = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    moved = projected(4.0, norm=2.0)(conditional, free, conditional, torch.zeros(4)) - conditional
    assert float((moved * conditional).flatten(1).sum(1).abs().max()) < 1e-4
    assert float(torch.linalg.vector_norm(moved.flatten(1), dim=1).max()) <= 3 * 2.0 + 1e-5
    plain = projected(4.0, eta=1.0, norm=float("inf"))
    expected = free + 4.0 * (conditional - free)
    torch.testing.assert_close(plain(conditional, free, conditional, torch.zeros(4)), expected, rtol=1e-5, atol=1e-5)


def test_autoguidance_is_the_line_between_two_models_of_any_parametrization() -> None:
    good = Gaussian(torch.zeros(3), torch.tensor([1.0, 0.5, 0.2]), sde=SDE)
    weak = Gaussian(torch.zeros(3), torch.tensor([1.5, 1.0, 0.6]), sde=SDE)
    as_noise = ScoreModel(good.noise, SDE, "noise", (3,))
    guided = Guided(as_noise, 2.0, guide=weak)
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    expected = weak.denoise(x, t) + 2 * (good.denoise(x, t) - weak.denoise(x, t))
    torch.testing.assert_close(guided.denoise(x, t), expected, rtol=1e-9, atol=1e-9)
    assert guided.cost == 2
    assert solve(SDE.probability_flow(guided), torch.randn(2, 3), nfe=10).nfe.tolist() == [10, 10]
    # away from the weak model: narrower than the good one
    assert float(sample(guided, 500, nfe=20).std()) < float(sample(good, 500, nfe=20).std())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guided(MODEL), "give the guidance scale"),
        (lambda: Guided(MODEL, 2.0, combine=rescaled(2.0)), "scale of its own"),
        (lambda: Guided(MODEL, combine=rescaled(2.0), on="noise"), "space of combine"),
        (
            lambda: Guided(MODEL, 2.0, guide=Gaussian(torch.zeros(3), torch.ones(3), sde=EDM())),
            "guide was made",
        ),
        (lambda: rescaled(2.0, phi=1.5), "from 0 to 1; got 1.5"),
        (lambda: projected(2.0, norm=0.0), "above 0"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
