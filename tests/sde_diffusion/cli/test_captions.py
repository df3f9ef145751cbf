"""Captions from the command line: a run of two updates samples for captions and remembers them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.data.captioned.digit_pairs import VOCABULARY
from sde_diffusion.sampling.editing import transport
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.text import to_caption, to_numbers

pytestmark = pytest.mark.slow
ASKED = ["--caption", "a three left of a seven", "--caption", "an eight right of a red two"]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def run(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 2, result.stdout
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of captions that was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    names = "--channels 8 --blocks 1 --batch-size 8 --lr 0.05 --ema 0.5 --device cpu --sample-every 0"
    said = run("train", "--data", "digit-pairs", *names.split(), "--steps", "4", "--out", str(folder / "run"))
    assert '--caption "' in said and "20000 captions of 19 words" in said
    return folder


@pytest.fixture(autouse=True)
def here(trained: Path, empty_directory: None) -> None:
    shutil.copytree(trained / "run", "run")


def test_samples_are_those_of_their_captions_and_a_record_has_them() -> None:
    run("sample", "run", *ASKED, "--n", "3", "--nfe", "4", "--out", "a")
    x = np.load("a/samples.npz")["x"]
    captions = to_numbers([ASKED[1], ASKED[3], ASKED[1]], VOCABULARY)
    torch.testing.assert_close(torch.tensor(x), sample(load("run"), 3, nfe=4, caption=captions, progress=False))
    record: dict[str, Any] = json.loads(Path("a/samples.json").read_text())
    assert record["guidance_rule"]["condition"]["captions"] == ASKED[1::2]
    assert "bit-equal" in run("sample", "run", "--record", "a/samples.json", "--out", "b")
    run("sample", "run", "--n", "3", "--nfe", "4", "--out", "c")
    assert np.abs(np.load("c/samples.npz")["x"] - x).max() > 1e-3


def test_a_file_of_captions_and_guidance() -> None:
    Path("c.txt").write_text(f"{ASKED[1]}\n{ASKED[3]}\n")
    run("sample", "run", "--condition", "c.txt", "--guidance", "2", "--n", "2", "--nfe", "8", "--out", "a")
    run("sample", "run", *ASKED, "--guidance", "2", "--n", "2", "--nfe", "8", "--out", "b")
    np.testing.assert_array_equal(np.load("a/samples.npz")["x"], np.load("b/samples.npz")["x"])
    record = json.loads(Path("b/samples.json").read_text())
    assert record["nfe"]["most"] == 8


def test_a_text_difference_changes_an_image_and_keeps_its_noise() -> None:
    data = load_data("digit-pairs")
    np.save("x.npy", data.x[:2].numpy())
    told = to_caption(data.condition.values[0], VOCABULARY)  # type: ignore[union-attr]
    words = ["edit", "transport", "x.npy", "--run", "run", "--caption", told, "--tolerance", "1e-3", "--out", "e"]
    run(*words, "--to", f"{told}; {ASKED[1]}")
    found = np.load("e/edit.npz")
    x = torch.tensor(found["given"])
    source, target = (to_numbers([text] * 2, VOCABULARY) for text in (told, ASKED[1]))
    expected = transport(load("run"), x, {"caption": source}, {"caption": target}, tolerance=1e-3)
    assert found["x"].shape == (2, 3, 3, 10, 20)  # the round trip, as its own caption, as the other
    np.testing.assert_allclose(found["x"][:, 2], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["x"][:, 1], found["x"][:, 0], atol=1e-5)
    assert json.loads(Path("e/edit.json").read_text())["settings"]["to"] == [told, ASKED[1]]
    message = refused(*words[:-2], "--to", "a thre left of a seven")
    assert "unknown word 'thre'" in message
    assert "transport by captions needs both" in refused(*words[:-2])
    assert "would have no effect" in refused("edit", "variations", "x.npy", "--caption", "a three")


def test_a_run_is_resumed_without_naming_its_captions() -> None:
    run("train", "--resume", "--out", "run", "--steps", "5")
    state = json.loads((max(Path("run/checkpoints").iterdir()) / "state.json").read_text())
    assert state["step"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--caption", "a three beside a seven"], "unknown word 'beside'"),
        (["run", "--caption", "..."], "a caption has at least one word"),
        (["run", "--caption", "a three", "--condition", "c.txt"], "--caption is a condition of its own"),
        (["bundled", "--caption", "a three"], "was trained without captions"),
        (["run", "--caption", "a three", "--record", "x.json"], "leave out --caption"),
    ],
)
def test_captions_that_mean_nothing_are_refused(words: list[str], message: str) -> None:
    assert message in refused("sample", *words)
