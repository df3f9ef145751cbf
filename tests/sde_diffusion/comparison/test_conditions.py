"""compare and tune on conditional and guided models, with conditions of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, Guided, ScoreModel, sample, tune
from sde_diffusion.comparison import compare
from sde_diffusion.sampling.reference_solution import converged
from solvers import SOLVERS
from solvers.errors import InputError, InputTypeError

SDE = VPSDE()


def network(x: Tensor, t: Tensor, text: Tensor, extra: dict[str, Any] | None = None) -> Tensor:
    """The exact noise of a Gaussian of variance 1/4 around a mean that text and extra set."""
    mean = text if extra is None else text + extra["rows"] * extra["factor"]
    alpha, sigma = (c[:, None] for c in SDE.marginal(t.double()))
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    x0 = mean + gain * (x - alpha * mean)
    return ((x - alpha * x0) / sigma).to(x.dtype)


MODEL = ScoreModel(network, SDE, shape=(2,))
TEXT = torch.linspace(-2, 2, 48).reshape(24, 2)


def test_solvers_are_compared_under_conditions() -> None:
    extra = {"rows": torch.ones(24, 2), "factor": 0.5}
    found = compare(
        MODEL, {"ddim": SOLVERS["ddim"], "unipc": SOLVERS["unipc"]}, [8], n=24, paired=12, batch_size=5,
        reference_steps=100, text=TEXT, extra=extra,
    )  # fmt: skip
    errors = {row.solver: row.error for row in found.rows}
    assert errors["unipc"] < 0.5 * errors["ddim"]
    x1 = SDE.prior((12, 2), seeds=range(12))
    cut = {"rows": extra["rows"][:12], "factor": 0.5}
    ends, _ = converged(MODEL, x1, steps=100, batch_size=7, text=TEXT[:12], extra=cut)
    # the flow of a Gaussian is a scaling around its mean
    mean = TEXT[:12].double() + 0.5
    alpha, sigma = SDE.marginal(1.0)
    exact = mean + (x1.double() - alpha * mean) * 0.5 / (0.25 * alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(ends, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_guided_models_with_a_null_for_each_sample_are_compared_and_tuned() -> None:
    null = -TEXT[torch.arange(24) % 24]
    guided = Guided(MODEL, 2.0, null={"text": null})
    found = compare(
        guided, {"unipc": SOLVERS["unipc"]}, [20], n=24, paired=24, batch_size=7, reference_steps=100, text=TEXT
    )
    assert found.rows[0].error < 0.05
    table = tune(guided, nfe=6, noise_samples=16, held_out=8, batch_size=9, text=TEXT)
    assert bool(sample(guided, 24, solver=table, nfe=6, text=TEXT).isfinite().all())


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputTypeError, match="'txet'"):
        compare(MODEL, {"ddim": SOLVERS["ddim"]}, [4], n=24, txet=TEXT)
    with pytest.raises(InputError, match="has 23 entries for 24"):
        tune(MODEL, nfe=4, noise_samples=16, held_out=8, text=TEXT[:23])
