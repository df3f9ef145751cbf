"""Training with captions and with codes: resumed runs, what is dropped, what is refused, what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.data import Data, as_data
from sde_diffusion.data.captioned.caption_files import as_captions
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.text import to_numbers
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.training_run import train
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False}
TEXTS = ["left bright", "right bright", "left", "right dark"]


def words(n: int = 64) -> Data:
    """Images of two pixels: the one that the caption names is 1 where it is bright, and -1 where it is dark."""
    x = torch.zeros(n, 1, 1, 2)
    captions = [TEXTS[k % 4] for k in range(n)]
    for k, caption in enumerate(captions):
        place = 0 if caption.startswith("left") else 1
        x[k, 0, 0, place] = {"bright": 1.0, "dark": -1.0}.get(caption.split()[-1], 0.0)
    return as_data(x.numpy(), condition=as_captions(captions))


def dit(vocabulary: Any, **more: Any) -> ScoreModel:
    torch.manual_seed(0)
    network = build(
        "dit", shape=(1, 1, 2), patch=1, width=16, depth=1, heads=2, caption=vocabulary, caption_width=16, **more
    )
    return ScoreModel(network, VPSDE(), "velocity")


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*.safetensors")}


def test_a_resumed_run_with_captions_is_bit_equal(tmp_path: Path) -> None:
    data = words()
    assert data.condition is not None
    options = {**FAST, "drop_condition": 0.3, "keep": 1, "schedule": "constant"}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    train(dit(data.condition.setting), data, steps=4, out=whole, **options)
    train(dit(data.condition.setting), data, steps=2, out=torn, **options)
    train(dit(data.condition.setting), data, steps=4, out=torn, resume=True, **options)
    assert files(whole) == files(torn)


def test_whole_captions_are_dropped() -> None:
    data = words()
    assert data.condition is not None
    config = TrainConfig(steps=1, batch_size=64, device="cpu", drop_condition=0.5)
    feed = Trainer(dit(data.condition.setting), data, config).feed
    found = feed.batch(1, torch.arange(64), feed.draw(1), slice(0, 64), None)["caption"]
    lost = found.isnan().all(1)
    assert 16 <= lost.sum() <= 48
    assert torch.equal(found[~lost].nan_to_num(-1), data.condition.values[~lost].nan_to_num(-1))


def test_a_network_of_other_words_is_refused() -> None:
    with pytest.raises(InputError, match="have another vocabulary than this network, of 2 words; the words bright"):
        train(dit(["left", "right"]), words(), steps=1, **FAST)
    with pytest.raises(InputError, match="takes the condition 'caption', and data has none"):
        train(dit(["left", "right"]), as_data(torch.zeros(64, 1, 1, 2).numpy(), name="data"), steps=1, **FAST)


@pytest.mark.slow
def test_samples_are_what_their_captions_say() -> None:
    data = words()
    assert data.condition is not None
    options = {**FAST, "batch_size": 64, "learning_rate": 5e-3, "normalize": "none", "drop_condition": 0.0, "ema": 0.9}
    model = train(dit(data.condition.setting, required=True), data, steps=250, **options)
    asked = to_numbers(TEXTS, data.condition.setting)
    drawn = sample(model, 4, nfe=10, caption=asked, progress=False)[:, 0, 0]
    expected = torch.tensor([[1.0, 0], [0, 1.0], [0, 0], [0, -1.0]])
    torch.testing.assert_close(drawn, expected, atol=0.2, rtol=0)
    with pytest.raises(InputError, match="needs its condition"):
        sample(model, 4, nfe=10, progress=False)
