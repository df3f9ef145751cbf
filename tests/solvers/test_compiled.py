"""A compiled network is compiled once for a run, and fixed-step solvers never make the host wait for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import VPSDE
from solvers import SOLVERS, solve

FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "torchsde"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(torch.cat([x, t[:, None]], dim=1)).tanh()


@pytest.mark.parametrize("name", FIXED)
def test_a_compiled_network_has_one_graph(name: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = ScoreModel(torch.compile(Network(), backend=backend, fullgraph=True), VPSDE(), shape=(2,))
    process = model.sde.reverse(model, float(SOLVERS[name].stochastic))
    with torch.no_grad():
        run = solve(process, model.sde.prior((4, 2)), solver=name, nfe=20)
    assert bool(run.x.isfinite().all())
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", FIXED)
def test_the_host_never_waits(name: str) -> None:
    model = ScoreModel(Network(), VPSDE(), shape=(2,)).cuda()
    process = model.sde.reverse(model, float(SOLVERS[name].stochastic))
    x1 = model.sde.prior((64, 2), device="cuda")
    with torch.no_grad():
        solve(process, x1, solver=name, nfe=20)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run = solve(process, x1, solver=name, nfe=20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert run.status == ["ok"] * 64
