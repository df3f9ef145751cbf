from __future__ import annotations

from pathlib import Path

import pytest

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage import locate as places
from sde_diffusion.storage.checkpoint import export


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> Path:
    path = export(ScoreModel(MLP((2,), width=4), VPSDE(), shape=(2,)), Path("b.safetensors"))
    monkeypatch.setattr(places, "BUNDLED", path)
    return path


def test_names_never_collide() -> None:
    made = []
    for _ in range(3):
        made.append(places.new_run("moons", "vp"))
        made[-1].mkdir(parents=True)
    assert [str(path) for path in made] == ["runs/moons-vp", "runs/moons-vp-2", "runs/moons-vp-3"]


@pytest.mark.parametrize(
    ("data", "name"),
    [("../a b/c d.npz", "c-d-vp"), ("cats/", "cats-vp"), ("..", "data-vp"), ("./", "data-vp")],
)
def test_any_path_gives_a_plain_name(data: str, name: str) -> None:
    assert places.new_run(data, "vp") == Path("runs") / name


def test_the_bundled_model_is_the_last_resort(bundled: Path) -> None:
    assert places.find_model().path == bundled
    assert places.find_model("bundled").path == bundled
    assert places.name_of(places.find_model()) == "bundled"
    copy = Path("copy.safetensors")
    copy.write_bytes(bundled.read_bytes())
    assert places.name_of(places.find_model(copy)) == "copy.safetensors"
    bundled.unlink()
    with pytest.raises(FileNotFoundError, match=r"no bundled model at .*train one first"):
        places.find_model()


def test_a_file_or_folder_called_bundled_comes_first(bundled: Path) -> None:
    bundled.rename("bundled")
    assert places.find_model("bundled").path == Path("bundled")
