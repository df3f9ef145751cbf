"""Diffusion autoencoders: codes, both ways of the flow, linear directions, and the training of all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion.data import as_data, load_data
from sde_diffusion.data.conditions import own_images
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE
from sde_diffusion.semantic import change, codes_of, fit_attributes, interpolated, reconstruct, variations
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.training_run import train
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False}


def model(**more: Any) -> ScoreModel:
    """A smooth network whose code matters."""
    settings = {"image": (1, 4, 4), "code": 3, **more}
    network = build("dit", shape=(1, 4, 4), width=8, depth=1, heads=2, embedding="log", **settings)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return ScoreModel(network, VPSDE(), "velocity", shape=(1, 4, 4)).eval()


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_both_codes_give_the_image_and_another_code_another_image() -> None:
    found, x = model(), images(3)
    torch.testing.assert_close(reconstruct(found, x, tolerance=1e-6), x, atol=2e-3, rtol=0)
    other = reconstruct(found, x, code=codes_of(found, x) + 1)
    assert (other - x).flatten(1).norm(dim=1).min() > 1e-2
    torch.testing.assert_close(change(found, x, torch.zeros(3)), x, atol=5e-3, rtol=0)


def test_the_ends_of_an_interpolation_are_the_images() -> None:
    found, a, b = model(), images(2), images(2, seed=1)
    way = interpolated(found, a, b, [0.0, 0.5, 1.0])
    torch.testing.assert_close(way[0], a, atol=5e-3, rtol=0)
    torch.testing.assert_close(way[2], b, atol=5e-3, rtol=0)
    assert way.shape == (3, 2, 1, 4, 4)


def test_variations_share_the_code_and_differ_in_noise() -> None:
    found, x = model(), images(2)
    drawn = variations(found, x, count=3, nfe=4)
    assert drawn.shape == (2, 3, 1, 4, 4)
    assert (drawn[:, 0] - drawn[:, 1]).flatten(1).norm(dim=1).min() > 0.1
    torch.testing.assert_close(drawn, variations(found, x, count=3, nfe=4))


def test_a_step_of_the_classifier_reaches_its_margin_and_no_further() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]])
    z = centres[labels] + 0.5 * torch.randn(300, 4, generator=g)
    found = fit_attributes(z, labels)
    assert (found.logits(z).argmax(1) == labels).double().mean() > 0.95
    for target in range(3):
        moved = found.logits(z + found.step(z, target, margin=2.0))
        rest = moved.clone()
        rest[:, target] = -torch.inf
        gap = moved[:, target] - rest.amax(1)
        assert gap.min() > 1.99 and (gap[labels != target] < 2.6).all()
    two = fit_attributes(z[labels < 2], labels[labels < 2])
    assert (two.logits(z[labels < 2]).argmax(1) == labels[labels < 2]).double().mean() > 0.95


def test_a_run_with_code_trains_itself_and_resumes_bit_equal(tmp_path: Path) -> None:
    options = {"data": "digits", "batch_size": 16, "sample_every": 0, "keep": 1, "schedule": "constant"}
    options |= {"network": {"code": 5, "channels": 8, "blocks": 1}, "device": "cpu"}
    found = []
    for name, parts in (("whole", [4]), ("torn", [2, 4])):
        for k, steps in enumerate(parts):
            asked = options if k == 0 else {}
            made = set_up({**asked, "steps": steps, "out": str(tmp_path / name)}, resume=k > 0)
            train(made.model, made.data, made.config, out=made.out, resume=k > 0, progress=False)
        found.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("step-000004/*.safetensors")})
    assert found[0] == found[1] and found[0]
    loaded = load(tmp_path / "torn")
    digits = load_data("digits").batch(slice(0, 4))
    assert codes_of(loaded, digits).shape == (4, 5)
    assert (codes_of(loaded, digits)[0] - codes_of(loaded, digits)[3]).abs().max() > 1e-4


@pytest.mark.slow
def test_the_code_holds_what_the_noise_hides() -> None:
    """Images of one of two levels: the sample of a code has the level of the code's image, whatever the noise."""
    level = torch.where(torch.arange(128) % 2 == 0, 1.0, -1.0)[:, None, None, None]
    data = as_data((level * torch.ones(128, 1, 4, 4)).numpy())
    data = replace(data, condition=own_images(data))
    torch.manual_seed(0)
    network = build("dit", shape=(1, 4, 4), width=16, depth=1, heads=2, embedding="log", image=(1, 4, 4), code=2)
    options = {**FAST, "batch_size": 64, "learning_rate": 5e-3, "normalize": "none", "ema": 0.9}
    trained = train(ScoreModel(network, VPSDE(), "velocity"), data, steps=200, **options)
    drawn = variations(trained, data.batch(slice(0, 8)), count=2, nfe=10)
    torch.testing.assert_close(drawn.mean((2, 3, 4)), level[:8, :, 0, 0].expand(-1, 2), atol=0.2, rtol=0)


def test_what_has_no_codes_is_refused() -> None:
    plain = ScoreModel(build("dit", shape=(1, 4, 4), width=8, depth=1, heads=2), VPSDE(), "velocity")
    with pytest.raises(InputError, match="the network makes no codes of images; train one: sdediff train --code"):
        codes_of(plain, images(1))
    with pytest.raises(InputError, match=r"this network encodes \(B, 1, 4, 4\)"):
        codes_of(model(), torch.zeros(2, 1, 5, 5))
    with pytest.raises(InputError, match=r"a step of codes has shape \(4,\); expected \(3,\)"):
        change(model(), images(1), torch.zeros(4))
    with pytest.raises(InputError, match="two classes or more"):
        fit_attributes(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="a label for each"):
        fit_attributes(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    found = fit_attributes(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="run from 0 to 1; got 2"):
        found.step(torch.eye(2), 2)
    with pytest.raises(InputError, match=r"a code \(--code\) is made of images"):
        own_images(load_data("moons"))
