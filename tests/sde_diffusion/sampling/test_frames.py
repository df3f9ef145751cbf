"""How many functions stand between ``sample`` and the network's ``forward``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel, sample
from solvers import SOLVERS

ROOT = Path(__file__).parents[3]
OURS = (str(ROOT / "solvers"), str(ROOT / "sde_diffusion"))
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]


class Network(nn.Module):
    """A network that writes down the functions of the two packages on the way to its ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.ways: set[tuple[str, ...]] = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        way, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "sample":
            if frame.f_code.co_filename.startswith(OURS):
                way.append(frame.f_code.co_name)
            frame = frame.f_back
        assert frame is not None
        self.ways.add(("sample", *reversed(way)))
        return x * self.weight


@pytest.mark.parametrize("nfe", [4, 20])
@pytest.mark.parametrize("name", FIXED)
def test_at_most_seven_frames_lead_from_sample_to_the_network(name: str, nfe: int) -> None:
    network = Network()
    sample(ScoreModel(network, VPSDE(), shape=(3,)), 2, solver=name, nfe=nfe)
    assert network.ways
    for way in network.ways:
        assert way[-1] in ("denoise", "denoise_with_share") and len(way) <= 7, way
