"""Networks with captions and with codes of images: what is missing, what is refused, what is rebuilt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion.guidance.classifier_free import Guided, null_of
from sde_diffusion.models.conditions import condition_names
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import DiT, UNet, build
from sde_diffusion.sde import VPSDE
from solvers.errors import InputError

NETWORKS: dict[str, Any] = {
    "unet": lambda **more: UNet((1, 8, 8), channels=8, multipliers=(1, 2), attention=(4,), blocks=1, **more),
    "dit": lambda **more: DiT((1, 8, 8), width=16, depth=1, heads=2, **more),
}
WORDS = ["a", "left", "seven", "three"]
CAPTION = torch.tensor([[0.0, 3.0, 1.0], [0.0, 2.0, math.nan], [1.0, math.nan, math.nan]])


def awake(network: nn.Module) -> Any:
    """A network whose layers that start at zero do not."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["caption", "code"])
def test_a_nan_row_is_no_condition_and_guidance_finds_it(name: str, kind: str) -> None:
    setting = {"caption": WORDS, "caption_width": 8} if kind == "caption" else {"image": (1, 8, 8), "code": 4}
    network = awake(NETWORKS[name](**setting))
    value = CAPTION if kind == "caption" else torch.randn(3, 4)
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    free, full = network(x, t), network(x, t, **{kind: value})
    mixed = network(x, t, **{kind: value.index_fill(0, torch.tensor([1]), math.nan)})
    torch.testing.assert_close(mixed[1], free[1])
    torch.testing.assert_close(mixed[::2], full[::2])
    assert (full - free).abs().amax((1, 2, 3)).min() > 1e-4
    assert math.isnan(null_of(network, kind))
    model = ScoreModel(network, VPSDE(), "velocity", shape=(1, 8, 8))
    assert kind in (condition_names(model) or ())
    guided = Guided(model, 2.0).denoise(x, t.double(), **{kind: value})
    a, b = model.denoise(x, t.double()), model.denoise(x, t.double(), **{kind: value})
    torch.testing.assert_close(guided, a + 2 * (b - a), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_and_its_code_are_one_condition(name: str) -> None:
    network = awake(NETWORKS[name](image=(2, 5, 6), code=4))  # of another size than the sample
    x, t, image = torch.randn(3, 1, 8, 8), torch.rand(3), torch.randn(3, 2, 5, 6)
    network.given.measure("image", torch.full((2, 1, 1), 3.0), torch.full((2, 1, 1), 2.0))
    code = network.given.encoded(image)
    assert code.shape == (3, 4)
    torch.testing.assert_close(network(x, t, image=image), network(x, t, code=code))
    lost = image.index_fill(0, torch.tensor([0]), math.nan)
    assert network.given.encoded(lost)[0].isnan().all()
    torch.testing.assert_close(network(x, t, image=lost)[0], network(x, t)[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("more", [{"caption": WORDS, "caption_width": 8}, {"image": (1, 8, 8), "code": 4}])
def test_settings_rebuild_the_network(name: str, more: dict[str, Any]) -> None:
    network = NETWORKS[name](**more)
    again = build(network.name, **network.settings)
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, {"caption": CAPTION}, "built without the condition 'caption'"),
        ({}, {"code": torch.zeros(3, 4)}, "built without the condition 'code'"),
        ({"caption": WORDS}, {"code": torch.zeros(3, 4)}, "built without a code"),
        ({"caption": WORDS}, {"caption": CAPTION[:2]}, "2 captions for 3 samples"),
        ({"image": (1, 8, 8), "code": 4}, {"code": torch.zeros(3, 5)}, r"code has shape \(3, 5\); expected \(3, 4\)"),
        ({"image": (1, 8, 8), "code": 4}, {"image": torch.zeros(3, 1, 4, 4)}, r"expected \(3, 1, 8, 8\)"),
        (
            {"image": (1, 8, 8), "code": 4},
            {"image": torch.zeros(3, 1, 8, 8), "code": torch.zeros(3, 4)},
            "give the condition image or its code, not both",
        ),
        (
            {"image": (1, 8, 8), "code": 4},
            {"image": torch.zeros(3, 1, 8, 8), "image_noise": torch.zeros(3)},
            "this one reads its code",
        ),
    ],
)
def test_a_call_with_other_conditions_is_refused(settings: Any, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NETWORKS["dit"](**settings)(torch.zeros(3, 1, 8, 8), torch.zeros(3), **call)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption": WORDS, "tokens": 4}, "tokens or captions, not both"),
        ({"caption_width": 8}, "needs a network with captions"),
        ({"code": 4}, "give image=, its shape"),
        ({"image": (1, 4, 4), "code": 4, "resize": "nearest"}, "leave out resize="),
        ({"image": (1, 8, 8), "code": 0}, "code of a network is a length from 1 up"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NETWORKS["dit"](**settings)


def test_a_unet_without_attention_reads_no_captions() -> None:
    with pytest.raises(InputError, match="tokens and captions are read by the levels with attention"):
        UNet((1, 8, 8), channels=8, multipliers=(1, 2), caption=WORDS)
