"""The freedoms of a tuned table: which changes of coefficients keep constants."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tuned.freedoms import FREEDOMS, directions
from sde_diffusion import VPSDE, Gaussian
from sde_diffusion.tuning.fit import TableFit, TableParameters
from solvers import SOLVERS
from solvers.fitted.compile import compile_table


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_what_a_freedom_leaves_as_it_is(freedom: str) -> None:
    sde = VPSDE()
    model = Gaussian(torch.zeros(2), torch.ones(2), sde=sde)
    x = torch.ones(4, 2, dtype=torch.float64)
    fit = TableFit(lambda x, t, rows: model.denoise(x, t), sde, x, x)
    base = compile_table(SOLVERS["unipc"], sde, 4)
    parameters = TableParameters.around(base, fit, 0.5)
    allowed = directions(parameters, fit, freedom)
    g = torch.Generator().manual_seed(0)
    q = allowed @ (0.02 * torch.randn(allowed.shape[1], dtype=torch.float64, generator=g))
    made = parameters.table(q, fit)
    assert made is not None
    moved = max(abs(t - s) for t, s in zip(made.times, base.times, strict=True))
    assert (moved < 1e-12) == (freedom in ("grid's times", "neither"))
    alpha = sde.marginal(torch.tensor(base.times, dtype=torch.float64))[0].tolist()
    left = [r.decay * alpha[i] + sum(r.weights) - alpha[i + 1] for i, r in enumerate(made.rows)]
    keeps = max(map(abs, left)) < 1e-9
    assert keeps == (freedom in ("fixed sums", "neither"))
