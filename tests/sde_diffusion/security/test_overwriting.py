"""Files of the user are neither overwritten nor deleted; what is written is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sde_diffusion.files.writing import new_folder, write_file, write_synced
from sde_diffusion.storage.checkpoint import export, load
from sde_diffusion.storage.locate import BUNDLED
from tests.command import invoke, refused

pytestmark = pytest.mark.filterwarnings("ignore:.*dimensions are few")
EVALUATE = ["evaluate", "bundled", "--n", "8", "--nfe", "1", "--processes", "1", "--metrics", "sliced-wasserstein",
            "--features", "pixels", "--draws", "2", "--out", "e"]  # fmt: skip


@pytest.fixture
def data() -> Path:
    np.save("d.npy", np.random.default_rng(0).standard_normal((8, 2)))
    return Path("d.npy")


def test_a_picture_replaces_nothing_without_force(data: Path) -> None:
    before = data.read_bytes()
    assert "something.png" in refused("inspect", data, "--picture", data)
    Path("old.png").write_text("mine")
    assert "--force" in refused("inspect", data, "--picture", "old.png")
    assert Path("old.png").read_text() == "mine" and data.read_bytes() == before
    assert invoke("inspect", data, "--picture", "old.png", "--force").exit_code == 0
    assert Path("old.png").read_bytes().startswith(b"\x89PNG")


def test_a_reference_replaces_nothing_without_force_and_says_so_before_the_work() -> None:
    Path("model.safetensors").write_text("mine")
    said = refused(*EVALUATE, "--save-reference", "model.safetensors")
    assert "--force" in said and Path("model.safetensors").read_text() == "mine" and not Path("e").exists()
    assert "something.safetensors" in refused(*EVALUATE, "--save-reference", "r.npy")
    result = invoke(*EVALUATE, "--save-reference", "model.safetensors", "--force")
    assert result.exit_code == 0, result.output


def test_an_export_replaces_nothing_without_force() -> None:
    model = load(BUNDLED)
    for name in ("m.safetensors", "n.json"):
        Path(name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"m\.safetensors exists already and is kept"):
        export(model, "m.safetensors")
    with pytest.raises(FileExistsError, match=r"n\.json exists already"):
        export(model, "n.safetensors", provenance={"by": "me"})
    assert Path("m.safetensors").read_text() == Path("n.json").read_text() == "mine"
    assert not Path("n.safetensors").exists()


def test_tuning_replaces_only_what_tuning_wrote(data: Path) -> None:
    train = ["train", "--data", data, "--steps", 1, "--batch-size", 2, "--width", 4, "--depth", 1, "--out", "run"]
    assert invoke(*train).exit_code == 0
    tune = ["tune", "run", "--nfe", "1,2", "--noise-samples", 16, "--held-out", 2, "--out", "t"]
    Path("t").mkdir()
    for content in ("mine", "{}", '{"format": 1, "kind": "thesis"}'):
        Path("t/nfe-2.json").write_text(content)
        assert "nfe-2.json is no tuned solver, and is kept" in refused(*tune)
        assert Path("t/nfe-2.json").read_text() == content and not Path("t/nfe-1.json").exists()  # before the work
    Path("t/nfe-2.json").unlink()
    Path("t/nfe-2.json").symlink_to(data.absolute())
    assert "is kept" in refused(*tune) and Path("t/nfe-2.json").is_symlink()
    Path("t/nfe-2.json").unlink()
    assert invoke(*tune).exit_code == 0
    first = Path("t/nfe-2.json").read_bytes()
    assert invoke(*tune, "--seed", 1).exit_code == 0 and Path("t/nfe-2.json").read_bytes() != first


@pytest.mark.parametrize("command", ["sample", "train", "prepare", "evaluate"])
def test_a_folder_of_the_user_called_partial_survives(command: str, data: Path) -> None:
    for name in (".out.partial", ".samples.json.partial", ".out.rubbish"):
        Path(name).mkdir()
        (Path(name) / "thesis.txt").write_text("mine")
    args = {
        "sample": ["sample", "bundled", "--n", 1, "--nfe", 1],
        "train": ["train", "--data", data, "--steps", 1, "--batch-size", 2, "--width", 4, "--depth", 1],
        "prepare": ["prepare", data],
        "evaluate": EVALUATE[:-2],
    }[command]
    assert invoke(*args, "--out", "out").exit_code == 0
    assert all((Path(n) / "thesis.txt").read_text() == "mine" for n in (".out.partial", ".samples.json.partial"))


@pytest.mark.parametrize("name", [".r.safetensors.partial", ".out.partial", ".elbo.png.partial"])
def test_temporary_names_follow_no_link(name: str) -> None:
    Path("victim.txt").write_text("mine")
    Path(name).symlink_to(Path("victim.txt").absolute())
    assert invoke(*EVALUATE, "--save-reference", "r.safetensors").exit_code == 0
    assert invoke("sample", "bundled", "--n", 1, "--nfe", 1, "--out", "out").exit_code == 0
    assert Path("victim.txt").read_text() == "mine" and not Path("r.safetensors").is_symlink()


def test_even_a_name_that_was_guessed_is_not_written_through() -> None:
    Path("victim.txt").write_text("mine")
    Path("guessed").symlink_to(Path("victim.txt").absolute())
    with pytest.raises(FileExistsError):
        write_synced(Path("guessed"), b"x")
    assert Path("victim.txt").read_text() == "mine"
    write_file(Path("guessed"), b"x")  # a link under the final name is replaced, not followed
    assert Path("victim.txt").read_text() == "mine" and Path("guessed").read_bytes() == b"x"


def test_a_result_that_is_a_link_is_something_that_exists() -> None:
    Path("elsewhere").mkdir()
    Path("out").symlink_to(Path("elsewhere").absolute())
    assert "exists already" in refused("sample", "bundled", "--n", 1, "--nfe", 1, "--out", "out")
    assert not list(Path("elsewhere").iterdir())


def test_a_folder_that_could_not_be_finished_is_not_there() -> None:
    with pytest.raises(OSError, match="could not write set: No space left on device"), new_folder(Path("set")) as new:
        (new.temporary / "x").write_text("1")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), new_folder(Path("set")):
        raise KeyboardInterrupt
    assert not list(Path().iterdir())


def test_permissions_are_those_of_the_user() -> None:
    old = os.umask(0o027)
    try:
        with new_folder(Path("set")) as new:
            write_file(new.temporary / "x", b"1")
    finally:
        os.umask(old)
    assert Path("set").stat().st_mode & 0o777 == 0o750 and Path("set/x").stat().st_mode & 0o777 == 0o640
