"""pf-ode sees wide data in its first evaluations, and runs them as data of their scale."""

import pytest
import torch

from sde_diffusion import EDM, VPSDE, GaussianMixture, ScoreModel
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import ReverseProcess, evaluations, find, plan, solve
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.fitted.scale_of_data import noise_size, scales_of

MEANS = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
SEEING, USUAL = ProbabilityFlow(), ProbabilityFlow(scale=1.0)


def data(scale, sde, shift=0.0):
    model = GaussianMixture(scale * MEANS + shift, std=0.4 * scale, sde=sde)
    return sde.probability_flow(model), sde.prior((6, 24), seeds=range(6), dtype=torch.float64)


def error(ode, x1, nfe, solver=SEEING, scale=20.0):
    truth = solve(ode, x1, solver=ProbabilityFlow(scale=scale), nfe=300).x
    out = solve(ode, x1, solver=solver, nfe=nfe)
    return float((out.x - truth).square().mean().sqrt()), out


@pytest.mark.parametrize("sde", [VPSDE(), EDM()])
@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_wide_data_run_at_their_scale_and_usual_data_as_before(sde, nfe):
    ode, x1 = data(20.0, sde)
    seen, out = error(ode, x1, nfe)
    assert out.scales.tolist() == pytest.approx([28.0] * 6, rel=0.75) and out.nfe.tolist() == [nfe] * 6
    assert seen < (0.85 if nfe == 5 else 0.5) * error(ode, x1, nfe, USUAL)[0]
    assert "6 as wider data" in repr(out)
    for scale, shift in ((1.0, 0.0), (1.0, 3.0), (0.1, 0.0)):
        ode, x1 = data(scale, sde, shift)
        out = solve(ode, x1, solver=SEEING, nfe=nfe)
        assert out.scales.tolist() == [1.0] * 6
        assert torch.equal(out.x, solve(ode, x1, nfe=nfe, solver=USUAL).x)


def test_from_a_start_below_the_scale_it_is_unipc_on_the_levels_of_karras():
    sde = EDM(sigma_max=3.0)
    ode = sde.probability_flow(GaussianMixture(torch.zeros(1, 24, dtype=torch.float64), std=30.0, sde=sde))
    x1 = sde.prior((6, 24), seeds=range(6), dtype=torch.float64)
    out = solve(ode, x1, solver=SEEING, nfe=10)
    assert float(out.scales.min()) > 8
    assert torch.allclose(out.x, solve(ode, x1, nfe=10, solver="unipc", grid="karras").x, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch():
    sde = VPSDE()
    wide, usual = (GaussianMixture(c * MEANS, std=0.4 * c, sde=sde) for c in (20.0, 1.0))

    def denoise(x, t):
        return torch.where(flags[: len(x), None], wide.denoise(x, t), usual.denoise(x, t))

    flags = torch.tensor([False, True, False, True, True, False])
    _, x1 = data(1.0, sde)
    whole = solve(ReverseProcess(denoise, sde), x1, solver=SEEING, nfe=8)
    assert (whole.scales > 1).tolist() == flags.tolist() and whole.nfe.tolist() == [8] * 6
    for k in range(6):
        one = (wide if flags[k] else usual).denoise
        alone = solve(ReverseProcess(one, sde), x1[k : k + 1], solver=SEEING, nfe=8)
        assert torch.allclose(alone.x[0], whole.x[k], atol=1e-9), k


@pytest.mark.parametrize("nfe", [8, 20])
def test_the_driven_run_and_the_stored_solver_are_the_same(nfe):
    ode, x1 = data(20.0, VPSDE())
    solver, times = plan(ode, (24,), SEEING, nfe=nfe)
    assert restore_solver(describe_solver(solver)) == solver
    run = evaluations(ode, x1, times, solver)
    request = next(run)
    with pytest.raises(StopIteration) as end:
        while True:
            request = run.send(ode.model(request.x, request.t))
    assert torch.equal(end.value.value, solve(ode, x1, solver=SEEING, nfe=nfe).x)
    # A caller that keeps to the grid gets the solver of scale 1.
    kept = solve(ode, x1, solver=solver.on_grid(), grid=times).x
    assert torch.equal(kept, solve(ode, x1, solver=USUAL, nfe=nfe).x)
    assert find("unipc").on_grid() == find("unipc")
    with pytest.raises(ValueError, match="has its own times"):
        solver.init(ode, times[1:])


def test_the_error_in_units_of_the_data_stays():
    """At c = 1 nothing is seen; the others cost one or two evaluations more."""
    errors = {c: error(*data(c, EDM(sigma_max=10 * c)), 20, scale=c)[0] / c for c in (1.0, 10.0, 100.0)}
    assert max(errors.values()) < 8 * errors[1.0], errors
    ode, x1 = data(100.0, EDM(sigma_max=1000.0))
    assert error(ode, x1, 20, USUAL, 100.0)[0] / 100 > 10 * max(errors.values())


def test_networks_that_are_wrong_at_pure_noise_are_not_wide():
    """D_0 may be far off where the noise is large; D does not move by as much as D_0 is off in size."""
    sde = VPSDE()
    model = GaussianMixture(MEANS, std=0.4, sde=sde)
    off = 6.0 * torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noisy = ScoreModel(lambda x, t: model.denoise(x, t) + off * (t > 0.99).double()[:, None], sde, "data", (24,))
    _, x1 = data(1.0, sde)
    assert solve(sde.probability_flow(noisy), x1, solver=SEEING, nfe=8).scales.tolist() == [1.0] * 6


def test_the_scale_of_a_gaussian_is_exact_up_to_rounding():
    eps = torch.randn(4, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for c in (4.0, 30.0):
        for rho in (c, 2.0 * c):
            z = rho * eps
            shown = scales_of(z, (c**2 / (c**2 + rho**2) * z,) * 2, noise_size(z, rho), (1.0, rho))
            assert (shown / (1.5 * c)).log2().abs().max() <= 0.2501
    assert scales_of(eps, (eps * float("nan"),) * 2, noise_size(eps, 1.0), (1.0, 1.0)).tolist() == [0.0] * 4


def test_the_scale_of_a_short_vector_is_seen_in_the_move_of_d():
    """Below 16 entries eps says too little; D of a Gaussian moves from D_0 = 0 by c^2 / sqrt(c^2 + rho^2)."""
    eps = torch.tensor([[1.0, -1.0] * 4], dtype=torch.float64)
    for c in (30.0 * 2 ** (k / 8) for k in range(9)):
        rho = 4 * c
        z = (c**2 + rho**2) ** 0.5 * eps
        shown = scales_of(z, (c**2 / (c**2 + rho**2) * z, 0 * z), noise_size(eps, 1.0), (1.0, rho))
        assert (shown / (1.5 * c)).log2().abs().max() <= 0.2501, c
