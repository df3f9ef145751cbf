from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data.pixels import to_uint8
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import MLP, UNet
from sde_diffusion.sampling import generate
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.checkpoint import StoredModel, checkpoint_at, export, load
from solvers import SOLVERS, solve
from solvers.classical.euler import Euler
from solvers.fitted.pf_ode import ProbabilityFlow


def model(seed: int = 0, shape: tuple[int, ...] = (2,), classes: int | None = None) -> StoredModel:
    """A random network: its samples mean nothing and depend on everything."""
    torch.manual_seed(seed)
    if len(shape) == 3:
        small: UNet | MLP = UNet(shape, 4, (1,), blocks=1, attention=(), heads=1, classes=classes)
    else:
        small = MLP(shape, width=8, depth=1, classes=classes)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = Path(f"model-{seed}-{len(shape)}.safetensors")
    return checkpoint_at(export(ScoreModel(small, VPSDE(), shape=shape), path, force=True))


def through_file(samples: sample_record.Samples) -> dict[str, Any]:
    Path("samples.json").write_text(json.dumps(samples.record))
    return sample_record.read_record("samples.json")


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "pf-ode", "nfe": 7},
        {"solver": "pf-ode", "steps": 4, "grid": "karras", "seed": 3},
        {"solver": "ddim", "grid": [1.0, 0.6, 0.1, 0.0]},
        {"solver": "heun", "nfe": 9, "batch_size": 2},
        {"solver": "ddpm", "nfe": 6, "seed": 11},
        {"solver": "ddpm", "nfe": 6, "eta": 0.5},
        {"solver": "pc", "nfe": 9},
        {"solver": "rk45"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_card_gives_the_same_samples_again(options: dict[str, Any]) -> None:
    stored = model()
    first = generate.draw(stored, 5, SamplingSettings(**options))
    record = through_file(first)
    again = generate.redraw(record, stored)
    assert torch.equal(again.x, first.x) and torch.equal(again.seeds, first.seeds)
    assert sample_record.same(again, record)
    assert again.record == first.record
    # and it is the seed, not an accident, that makes them so
    moved = generate.redraw({**record, "seed": record["seed"] + 1}, stored)
    assert not sample_record.same(moved, record)


@pytest.mark.parametrize("nfe", [8, 20])
def test_a_card_of_large_samples_has_the_solver_that_made_them(nfe: int) -> None:
    stored = model(shape=(500,))
    first = generate.draw(stored, 3, SamplingSettings(ProbabilityFlow(scale=1.0), nfe=nfe))
    record = through_file(first)
    assert record["grid"]["name"] == "fitted"
    assert (record["solver"]["class"] == "MixtureOfTables") == (nfe == 8)
    assert torch.equal(generate.redraw(record, stored).x, first.x)


@pytest.mark.parametrize("nfe", [8, 20])
def test_a_card_says_at_which_scales_samples_ran(nfe: int) -> None:
    stored = model(shape=(500,))  # random weights, and some of the samples are wide
    first = generate.draw(stored, 3, SamplingSettings(nfe=nfe))
    record = through_file(first)
    assert record["solver"]["class"] == "SeenScale" and sum(record["scales"].values()) == 3
    assert torch.equal(generate.redraw(record, stored).x, first.x)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_labels_go_round_and_guidance_counts_twice(guidance: float) -> None:
    stored = model(classes=3)
    drawn = generate.draw(stored, 5, SamplingSettings(nfe=8, batch_size=2), labels=[2, 0], guidance=guidance)
    net = load(stored)
    label = torch.tensor([2, 0, 2, 0, 2])
    guided = net if guidance == 1 else Guided(net, guidance)
    assert torch.allclose(drawn.x, sample(guided, 5, nfe=8, label=label), atol=1e-5)
    assert not torch.allclose(drawn.x, sample(net, 5, nfe=8), atol=1e-2)
    assert len(drawn.record["grid"]["times"]) - 1 == 8 / (1 if guidance == 1 else 2)
    assert drawn.record["nfe"]["most"] == 8
    record = through_file(drawn)
    assert sample_record.same(generate.redraw(record, stored), record)


def test_labels_that_a_model_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="needs labels to guide to"):
        generate.draw(model(classes=3), 2, SamplingSettings(nfe=4), guidance=2.0)
    with pytest.raises(ValueError, match=r"run from 0 to 2; got \[3\]"):
        generate.draw(model(classes=3), 2, SamplingSettings(nfe=4), labels=[3])
    with pytest.raises(ValueError, match="trained without labels"):
        generate.draw(model(), 2, SamplingSettings(nfe=4), labels=[0])


def test_the_cap_of_an_adaptive_solver_is_on_the_record() -> None:
    stored = model()
    with pytest.warns(UserWarning, match="ended early"):
        first = generate.draw(stored, 3, SamplingSettings(solver="rk45", nfe=15))
    record = through_file(first)
    assert record["nfe"]["asked"] == 15 >= record["nfe"]["most"]
    with pytest.warns(UserWarning, match="ended early"):
        assert torch.equal(generate.redraw(record, stored).x, first.x)


def test_a_card_outlives_a_change_of_the_default_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = model()
    record = through_file(first := generate.draw(stored, 3, SamplingSettings(nfe=6)))
    monkeypatch.setitem(SOLVERS, "pf-ode", Euler())
    assert torch.equal(generate.redraw(record, stored).x, first.x)
    assert not torch.equal(generate.draw(stored, 3, SamplingSettings(nfe=6)).x, first.x)


def test_a_card_says_all_that_the_solvers_need() -> None:
    """The samples by the solver library alone, from what the JSON says."""
    stored = model()
    record = through_file(first := generate.draw(stored, 4, SamplingSettings(solver="dpm++2m", nfe=6, seed=2)))
    seeds = record["seed"] * 2**32 + torch.arange(record["n"])
    net = load(stored)
    out = solve(
        net.sde.reverse(net, record["eta"]),
        net.sde.prior((4, *record["shape"]), seeds=seeds),
        solver=record["solver"]["name"],
        grid=record["grid"]["times"],
        seeds=seeds,
    )
    assert torch.equal(out.x, first.x) and torch.equal(seeds, first.seeds)
    assert record["nfe"] == {"asked": 6, "least": 6, "most": 6, "mean": 6.0}
    assert record["x"]["sha256"] == hashlib.sha256(first.x.numpy().tobytes()).hexdigest()
    assert record["checkpoint"]["sha256"] == hashlib.sha256(stored.path.read_bytes()).hexdigest()


def test_a_solver_of_ones_own_can_be_made_again() -> None:
    Path("own.py").write_text(
        "from dataclasses import dataclass\n"
        "from solvers.classical.euler import Euler\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Euler):\n"
        "    slower: float = 2.0\n"
    )
    stored = model()
    first = generate.draw(stored, 2, SamplingSettings(solver="own.py:Mine", nfe=5))
    record = through_file(first)
    digest = hashlib.sha256(Path("own.py").read_bytes()).hexdigest()
    assert record["solver"] == {"name": "own.py:Mine", "class": "Mine", "settings": {"slower": 2.0}}
    assert record["solver_file_sha256"] == digest
    assert torch.equal(generate.redraw(record, stored, solver="own.py:Mine").x, first.x)


def test_another_checkpoint_is_refused_with_both_hashes() -> None:
    stored, other = model(0), model(1)
    record = generate.draw(stored, 2, SamplingSettings(nfe=3)).record
    with pytest.raises(ValueError, match=f"{stored.sha256}.*{other.sha256}"):
        generate.redraw(record, other)


def test_samples_are_written_once_and_completely() -> None:
    samples = generate.draw(model(), 6, SamplingSettings(nfe=3))
    shown = sample_record.save_samples(samples, "new/set")
    assert shown == Path("new/set/samples.png") and shown.is_file()
    with np.load("new/set/samples.npz") as file:
        arrays = dict(file)
    assert np.array_equal(arrays["x"], samples.x.numpy()) and arrays["x"].dtype == np.float32
    assert arrays["seeds"].tolist() == [0, 1, 2, 3, 4, 5]
    assert sample_record.read_record("new/set/samples.json") == samples.record
    with pytest.raises(FileExistsError, match="new/set exists already"):
        sample_record.save_samples(samples, "new/set")


def test_a_full_disk_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = generate.draw(model(), 2, SamplingSettings(nfe=3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_record, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        sample_record.save_samples(samples, "new/set")
    assert list(Path("new").iterdir()) == []


def test_images_are_shown_as_their_pixels() -> None:
    samples = generate.draw(model(shape=(1, 4, 4)), 1, SamplingSettings(nfe=2))
    with Image.open(sample_record.save_samples(samples, "one")) as image:
        picture = np.asarray(image)
    # 4 x 4 pixels, each 16 wide, within a margin of 2
    assert np.array_equal(picture[2:66:16, 2:66:16], to_uint8(samples.x)[0, 0].numpy())


def test_samples_without_a_picture_are_kept_as_arrays() -> None:
    samples = generate.draw(model(shape=(2, 2, 2, 2)), 2, SamplingSettings(nfe=2))
    assert sample_record.save_samples(samples, "volumes") == Path("volumes/samples.npz")
    assert sorted(p.name for p in Path("volumes").iterdir()) == ["samples.json", "samples.npz"]


@pytest.mark.parametrize("shape", [(3,), (2, 5)])
def test_vectors_and_signals_have_a_picture(shape: tuple[int, ...]) -> None:
    samples = generate.draw(model(shape=shape), 4, SamplingSettings(nfe=2))
    assert sample_record.save_samples(samples, "drawn") == Path("drawn/samples.png")


def test_progress_runs_from_nothing_to_all() -> None:
    shares: list[float] = []
    generate.draw(model(), 5, SamplingSettings(nfe=4, batch_size=2), progress=shares.append)
    assert shares == sorted(shares) and 0 < shares[0] < 1 / 3 and shares[-1] == 1.0
    assert len(shares) == 3 * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "torn, or not JSON"),
        ("[1]", "was not written by sdediff"),
        ('{"format": 99}', "has format 99"),
        ('{"format": 1, "train": {}}', "is no record of samples"),
    ],
)
def test_what_is_no_card_is_refused(content: str, message: str) -> None:
    Path("samples.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        sample_record.read_record("samples.json")


def test_a_missing_card_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no record at gone\.json"):
        sample_record.read_record("gone.json")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        device_for("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA device"):
            device_for("cuda")
