"""The CIFAR-10 benchmark runs from training to table, in a small form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.cifar10 import __main__ as command
from benchmarks.cifar10.images import flipped
from benchmarks.cifar10.network_training import build_model
from benchmarks.cifar10.settings import FULL, MINIATURE
from sde_diffusion.data import Data, as_data


def test_the_full_network_has_about_35_million_parameters_and_attention_at_16() -> None:
    network = build_model(FULL, torch.device("cpu")).network
    assert 33e6 < sum(p.numel() for p in network.parameters()) < 39e6
    assert network.settings["attention"] == [16]


def test_half_of_the_images_are_flipped() -> None:
    torch.manual_seed(0)
    x = torch.zeros(1000, 3, 4, 4, dtype=torch.uint8)
    x[..., 0] = 255
    left = flipped(x)[:, 0, 0, 0]
    assert 400 < int((left == 1).sum()) < 600 and set(left.tolist()) == {-1.0, 1.0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_writes_table_plot_and_record(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(300, 3, 3, 3, generator=generator), (8, 8), mode="bilinear")
    images = (255 * smooth).to(torch.uint8)

    def resident(*_: object) -> Data:
        return as_data(images, torch.randint(0, 10, (300,), generator=generator), name="smooth")

    monkeypatch.setattr(command, "resident", resident)
    settings = replace(
        MINIATURE, minutes=0.02, samples=160, nfe=(5,), solvers=("ddim", "heun", "tuned"), schedulers=2,
        classifier_epochs=1, pilot=4, tuning_minutes=0.03,
    )  # fmt: skip
    rows = command.run(settings, Path("out"), None, torch.device("cpu"), None)
    assert {row.solver for row in rows} >= {"ddim", "heun", "tuned"}
    assert all(row.frechet is not None for row in rows if row.solver in ("ddim", "tuned"))
    record = json.loads(Path("out/results.json").read_text())
    assert record["training"]["updates"] >= 5 and record["device"] == "cpu"
    assert "| ddim |" in Path("out/table.md").read_text()
    assert Path("out/curve.png").stat().st_size > 1000 and Path("out/samples.png").stat().st_size > 1000
