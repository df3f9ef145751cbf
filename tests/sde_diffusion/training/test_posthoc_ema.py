"""Averages made after training are those that training would have kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.training.posthoc_ema import coefficients, profile, reconstruct
from sde_diffusion.training.training_run import train

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def trained(out: Path, **options: Any) -> ScoreModel:
    torch.manual_seed(0)
    model = ScoreModel(build("mlp", shape=(2,), width=8, depth=1), VPSDE())
    return train(model, POINTS, out=out, batch_size=8, warmup=5, progress=False, **options)


def weights(model: ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_profile_is_what_the_updates_of_the_average_do() -> None:
    gamma_plus_1 = 7.937  # width 0.1: gamma = 6.94 (Karras et al. 2024)
    shares = np.zeros(60)
    for k in range(1, 41):
        decay = (1 - 1 / k) ** gamma_plus_1
        shares *= decay
        shares[k - 1] += 1 - decay
    np.testing.assert_allclose(profile(40, 0.1, 60), shares, atol=1e-4)
    assert profile(40, 0.1, 60).sum() == pytest.approx(1, abs=1e-14)


def test_a_width_that_was_not_kept_is_found_afterwards(tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=200, ema_widths=[0.05, 0.1, 0.17], snapshot_every=20)
    kept = weights(load(tmp_path / "run", weights="power-0.17"))
    last = weights(load(tmp_path / "run", weights="model"))
    model, error = reconstruct(tmp_path / "run", 0.17)
    torch.testing.assert_close(weights(model), kept, rtol=1e-5, atol=1e-6)
    assert error < 1e-6

    # Snapshots of two other widths give it too, much nearer than the last weights are.
    trained(tmp_path / "two", steps=200, ema_widths=[0.05, 0.1], snapshot_every=20)
    model, error = reconstruct(tmp_path / "two", 0.17)
    assert error < 0.05
    assert float((weights(model) - kept).norm()) < 0.03 * float((last - kept).norm())
    # and that of an earlier end of training
    model, _ = reconstruct(tmp_path / "two", 0.1, step=100)
    torch.testing.assert_close(
        weights(model), weights(load_snapshot(tmp_path / "two/snapshots/step-000100")), rtol=1e-5, atol=1e-6
    )


def load_snapshot(folder: Path) -> ScoreModel:
    from safetensors.torch import load_file

    model = ScoreModel(build("mlp", shape=(2,), width=8, depth=1), VPSDE())
    model.network.load_state_dict(load_file(folder / "power-0.1.safetensors"))
    return model


def test_a_narrower_average_than_any_saved_is_reported_as_far() -> None:
    saved = [(step, width) for step in range(100, 1001, 100) for width in (0.05, 0.1)]
    errors = {width: coefficients(saved, 1000, width)[1] for width in (0.01, 0.05, 0.07, 0.1, 0.15)}
    assert errors[0.01] > 0.4 and errors[0.05] < 1e-9 and errors[0.1] < 1e-9
    assert errors[0.07] < 0.05 and errors[0.15] < 0.05


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "plain", steps=2)
    with pytest.raises(CheckpointError, match=r"has no snapshots.*--ema-width"):
        reconstruct(tmp_path / "plain", 0.1)
    trained(tmp_path / "run", steps=4, ema_widths=[0.1], snapshot_every=2)
    with pytest.raises(ValueError, match=r"step must be from 1 to 4, .* got 5"):
        reconstruct(tmp_path / "run", 0.1, step=5)
    with pytest.raises(ValueError, match="before the first snapshot"):
        reconstruct(tmp_path / "run", 0.1, step=1)
    with pytest.raises(ValueError, match=r"lies in \(0, 0.288\]"):
        reconstruct(tmp_path / "run", 0.5)
