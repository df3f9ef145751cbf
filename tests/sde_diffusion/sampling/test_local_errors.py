"""The error profile: estimates that shrink as they should, found where the error is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.local_errors import error_profile, shortest_half
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sde import VPSDE

MODEL = GaussianMixture(torch.tensor([[-1.0, 0.4], [1.0, 0.0]]), 0.3, sde=VPSDE())


def test_estimates_fall_with_their_order() -> None:
    """The gap between answers of order 2 and 3 is h^3 in a step, h^2 in the sum over steps."""
    coarse, fine = (sum(error_profile(MODEL, SamplingSettings(solver="unipc", nfe=n)).error) for n in (40, 160))
    assert 4**1.5 < coarse / fine < 4**3


def test_a_kink_in_time_is_found() -> None:
    """A denoiser that turns from one value to another around t = 0.3 makes its error there, or one step after."""

    def kinked(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(60 * (t[:, None] - 0.3)).to(x.dtype).expand_as(x)

    model = ScoreModel(kinked, VPSDE(), "data", shape=(2,))
    for solver in ("pf-ode", "dpm++2m", "unipc"):
        high, low = error_profile(model, SamplingSettings(solver=solver, nfe=50)).half
        assert high > 0.25 and low < 0.32 and high - low < 0.25, (solver, high, low)


def test_bins_cover_the_run_in_order() -> None:
    for solver in ("unipc", "rk23"):
        profile = error_profile(MODEL, SamplingSettings(solver=solver))
        assert profile.t[1:] == profile.s[:-1]
        assert profile.t == sorted(profile.t, reverse=True)
        assert min(profile.error) >= 0


def test_shortest_half_prefers_short_then_large() -> None:
    assert shortest_half([5.0, 1.0, 6.0]) == (2, 2)
    assert shortest_half([1.0, 1.0, 1.0, 1.0]) == (0, 1)


def test_solvers_without_an_estimate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ddim has no error estimate.*pf-ode"):
        error_profile(MODEL, SamplingSettings(solver="ddim"))
    with pytest.raises(ValueError, match="shape"):
        error_profile(ScoreModel(lambda x, t: x, VPSDE()))
