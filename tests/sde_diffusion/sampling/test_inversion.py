from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.inversion import decode, encode, interpolate, round_trip
from sde_diffusion.sde import EDM, SDE, VPSDE, CosineVPSDE, Flow


def mixture(sde: SDE) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.0, -1.0]]).double()
    return GaussianMixture(means, 0.3, sde=sde)


@pytest.mark.parametrize("sde", [CosineVPSDE(), EDM(), VPSDE()], ids=lambda s: type(s).__name__)
def test_codes_of_a_gaussian_are_its_closed_form_flow(sde: SDE) -> None:
    model = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]), sde=sde)
    x = torch.tensor([[0.4, -0.5], [2.0, 0.0]]).double()
    code = encode(model, x, tolerance=1e-8)
    expected = model.flow(float(sde.marginal(1e-5)[0]) * x, 1e-5, 1.0) / sde.prior_std()
    assert torch.allclose(code, expected, atol=1e-6)
    assert torch.allclose(decode(model, expected, tolerance=1e-8), x, atol=1e-6)


def test_the_round_trip_error_is_that_of_the_tolerance() -> None:
    model = mixture(VPSDE())
    x = model.draw(4)
    errors = [float(round_trip(model, x, tolerance=tolerance).error.max()) for tolerance in (1e-4, 1e-6, 1e-8)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-7
    found = round_trip(model, x, tolerance=1e-4)
    assert torch.allclose(found.error, (found.x - x).square().mean(1).sqrt())
    assert int(found.nfe.min()) > 30


def test_the_round_trip_of_fixed_steps_converges() -> None:
    model = mixture(VPSDE())
    x = model.draw(4)
    errors = [float(round_trip(model, x, solver="euler", steps=n).error.max()) for n in (40, 80, 160)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_codes_are_those_of_the_likelihood_and_normal() -> None:
    model = mixture(EDM())
    x = model.draw(300)
    code = encode(model, x, tolerance=1e-4)
    ll = log_likelihood(model, x[:3], tolerance=1e-6)
    assert torch.allclose(ll.code / model.sde.prior_std(), code[:3], atol=1e-3)
    # 600 standard normal numbers: mean and variance within 4 standard errors.
    assert abs(code.mean()) < 4 / 600**0.5 and abs(code.var() - 1) < 4 * (2 / 600) ** 0.5


def test_interpolation_turns_evenly_and_keeps_the_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.linspace(0, 1, 6)
    path = interpolate(a, b, weights)
    assert torch.allclose(path[0], a, atol=1e-12) and torch.allclose(path[-1], b, atol=1e-12)
    flat = path.flatten(2)
    norms = flat.norm(dim=2)
    assert torch.allclose(norms, torch.lerp(norms[0], norms[-1], weights[:, None].double()))
    cosine = torch.nn.functional.cosine_similarity(flat[:-1], flat[1:], dim=2)
    assert torch.allclose(cosine, cosine[0].expand_as(cosine), atol=1e-9)
    assert torch.linalg.matrix_rank(flat[:, 0]) == 2  # all in one plane
    assert torch.equal(interpolate(a, b, 0.4), interpolate(a, b, [0.1, 0.4])[1])


def test_interpolation_of_nearly_equal_codes_is_stable() -> None:
    a = torch.tensor([[3.0, 4.0]]).double()
    b = a + torch.tensor([[4.0, -3.0]]).double() * 1e-11
    middle = interpolate(a, b, 0.5)
    assert torch.allclose(middle - a, (b - a) / 2, rtol=1e-3, atol=1e-15)
    assert torch.equal(interpolate(a, a, 0.5), a)


def test_bad_input_is_named() -> None:
    a = torch.tensor([[1.0, 0.0]])
    with pytest.raises(ValueError, match="opposite codes"):
        interpolate(a, -2 * a, 0.5)
    with pytest.raises(ValueError, match="norm 0"):
        interpolate(a, 0 * a, 0.5)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]; got 1.5"):
        interpolate(a, a, 1.5)
    with pytest.raises(ValueError, match="one shape"):
        interpolate(a, torch.ones(2, 2), 0.5)
    model = mixture(Flow())
    x = model.draw(1)
    with pytest.raises(ValueError, match="needs steps=100"):
        encode(model, x, solver="heun")
    with pytest.raises(ValueError, match="leave steps out"):
        encode(model, x, steps=5)
    with pytest.raises(ValueError, match="draws noise"):
        encode(model, x, solver="ddpm", steps=5)
    with pytest.raises(ValueError, match=r"in \(0, 1\); got 0"):
        encode(model, x, t_min=0.0)
    with pytest.raises(ValueError, match="finite floating point"):
        encode(model, x * torch.nan)

    def bad(x: Tensor, t: Tensor) -> Tensor:
        return x.masked_fill(t[:, None] > 0.3, torch.nan)

    with pytest.raises(FloatingPointError, match=r"of 1 of 1 samples .* sample 0 \(non_finite\)"):
        encode(ScoreModel(bad, Flow(), "data"), x)
