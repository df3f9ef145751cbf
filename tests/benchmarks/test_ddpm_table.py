"""The table has every objective once, the paper's figures beside its own, and the losses are those of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ddpm_table import LOSSES, OBJECTIVES, PAPER, STEPS, Objective
from benchmarks.ddpm_table.__main__ import markdown, measured, trained
from sde_diffusion.sde import DDPM
from sde_diffusion.training.loss_weights import weight_for


def test_every_objective_is_there_once_and_those_of_the_paper_among_them() -> None:
    names = [objective.name for objective in OBJECTIVES]
    assert len(names) == len(set(names)) == 12 and set(PAPER) <= set(names)


def test_l_is_the_weight_of_the_bound() -> None:
    """beta^2 / (2 sigma^2 alpha (1 - abar)) of the error of eps, sigma^2 = beta (Ho et al. 2020, eq. 12)."""
    sde = DDPM(STEPS)
    t = torch.arange(2, STEPS + 1, dtype=torch.float64) / STEPS
    beta = sde.beta_i()[1:]
    _, sigma = sde.marginal(t)
    theirs = beta / (2 * (1 - beta) * sigma**2)
    ours = weight_for(LOSSES["L"], 1.0)(sde, t) / sigma**2
    # In continuous time: log(1 - beta) in the place of beta / (1 - beta), the same to first order in beta <= 0.2.
    torch.testing.assert_close(ours / ours[0], theirs / theirs[0], rtol=0.12, atol=0)


def test_the_rows_are_in_the_order_of_the_distance_with_the_paper_beside_them() -> None:
    def row(objective: Objective, distance: float) -> dict[str, Any]:
        figure = {"value": distance, "interval": [distance - 1, distance + 1]}
        parts = {"predicts": objective.predicts, "loss": objective.loss, "variance": objective.variance}
        return {**parts, "frechet": figure, "inception-score": figure}

    rows = {objective.name: row(objective, 20.0 - k) for k, objective in enumerate(OBJECTIVES)}
    text = markdown({"updates": 1, "n": 2, "command": "c", "rows": rows}).splitlines()
    found = [line for line in text if line.startswith("|")][2:]
    assert len(found) == 12 and found[0].startswith("| x_0 | L_simple | learned | 9.00 (8.00 to 10.00)")
    assert next(line for line in found if line.startswith("| eps | L_simple | fixed")).endswith("| 9.46 | 3.17 |")


@pytest.mark.slow
def test_an_objective_is_trained_and_measured(tmp_path: Path) -> None:
    model = trained(Objective("mean", "L_simple", "learned"), 2, tmp_path)
    assert isinstance(model.sde, DDPM) and model.predicts == "mean" and model.learned_variance() is not None
    with pytest.warns(UserWarning, match="are few"):
        found = measured(model, 70)
    low, high = found["inception-score"]["interval"]
    assert 1 <= found["inception-score"]["value"] <= 10 and low <= found["inception-score"]["value"] <= high
    assert found["frechet"]["value"] > 0
