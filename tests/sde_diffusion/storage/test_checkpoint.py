"""What is on disk: loading without flags, and every way in which a checkpoint can be bad."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE, CosineVPSDE
from sde_diffusion.storage.atomic_folder import CheckpointError, pack, unpack, write_folder
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.storage.run_folder import checkpoints, latest_run, newest_checkpoint
from sde_diffusion.training.training_run import train

POINTS = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("mlp", shape=(2,), width=8, depth=1)


def small_run(path: Path, steps: int = 6, model: ScoreModel | None = None) -> ScoreModel:
    model = model or ScoreModel(mlp(), CosineVPSDE(s=0.01), "velocity")
    return train(
        model,
        POINTS,
        out=path,
        steps=steps,
        batch_size=8,
        checkpoint_every=2,
        progress=False,
    )


def assert_same(a: ScoreModel, b: ScoreModel) -> None:
    x, t = torch.randn(5, 2), torch.rand(5, dtype=torch.float64)
    assert torch.equal(a.score(x, t), b.score(x, t))


def test_run_checkpoint_and_export_load_without_flags(tmp_path: Path) -> None:
    model = ScoreModel(mlp(), CosineVPSDE(s=0.01), "velocity", sigma_data=0.5)
    trained = small_run(tmp_path / "run", model=model)
    found = load(tmp_path / "run")
    assert (found.sde, found.predicts, found.shape, found.sigma_data, found.training) == (
        CosineVPSDE(s=0.01),
        "velocity",
        (2,),
        0.5,
        False,
    )
    assert_same(found, trained)
    assert_same(load(tmp_path / "run", weights="model"), model)
    assert_same(load(tmp_path / "run/checkpoints/step-000006"), trained)
    stored = checkpoint_at(tmp_path / "run")
    file = export(trained, tmp_path / "m.safetensors", data=stored.data, step=stored.step)
    assert_same(load(file), trained)
    assert checkpoint_at(file).data["fingerprint"] == stored.data["fingerprint"]
    assert checkpoint_at(file).step == stored.step == 6


def test_provenance_names_the_file_by_its_hash(tmp_path: Path) -> None:
    model = ScoreModel(mlp(), VPSDE(), shape=(2,))
    file = export(model, tmp_path / "m.safetensors", provenance={"command": "sdediff train"})
    note = json.loads((tmp_path / "m.json").read_text())
    assert note["command"] == "sdediff train"
    assert note["sha256"] == checkpoint_at(file).sha256
    assert file.read_bytes() == export(model, tmp_path / "again.safetensors").read_bytes()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(x)) * t[:, None]


def test_a_network_of_ones_own_with_tied_weights_is_passed_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = small_run(tmp_path / "run", model=ScoreModel(Tied(), VPSDE()))
    with pytest.raises(ValueError, match=r"test_checkpoint\.Tied; pass it: load\(path, network"):
        load(tmp_path / "run")
    again = load(tmp_path / "run", network=Tied())
    assert_same(again, trained)
    assert again.network.first.weight is again.network.last.weight
    with pytest.raises(CheckpointError, match="do not fit this network"):
        load(tmp_path / "run", network=nn.Linear(2, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    small_run(path)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def change_format(path: Path) -> None:
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))


def foreign(path: Path) -> None:
    path.write_text('{"epoch": 3}')


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("state.json", Path.unlink, "no state.json"),
        ("state.json", truncate, "torn, or not JSON"),
        ("state.json", change_format, "format 99.*reads format 1"),
        ("state.json", foreign, "not written by sdediff"),
        ("ema.safetensors", Path.unlink, "ema.safetensors is missing"),
        ("model.safetensors", truncate, "is torn: .* bytes of"),
        ("optimizer.safetensors", flip, "is damaged"),
    ],
)
def test_a_bad_checkpoint_is_named_and_never_the_newest(
    whole: Path, tmp_path: Path, file: str, spoil: Callable[[Path], None], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    spoil(run / "checkpoints/step-000006" / file)
    with pytest.raises(CheckpointError, match=f"(?s).*{message}"):
        load(run / "checkpoints/step-000006")
    with pytest.warns(UserWarning, match="using step-000004 instead"):
        assert checkpoint_at(run).step == 4


def test_there_is_a_reason_when_no_checkpoint_is_whole(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for folder in checkpoints(tmp_path / "run"):
        truncate(folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*step-000006.*is torn"):
        newest_checkpoint(tmp_path / "run")


def test_half_written_folders_are_no_checkpoints(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints/.step-000009.partial").mkdir()
    (run / "checkpoints/step-old").mkdir()
    assert newest_checkpoint(run).name == "step-000006"


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run"):
        load(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(pack({"w": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="not exported by sdediff"):
        load(tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(CheckpointError, match="torn, or no safetensors file"):
        load(tmp_path / "b.pt")
    file = export(ScoreModel(mlp(), VPSDE()), tmp_path / "c.safetensors")
    truncate(file)
    with pytest.raises(CheckpointError, match="torn"):
        load(file)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        export(ScoreModel(mlp(), VPSDE()), tmp_path / "c.pt")


def test_a_full_disk_keeps_the_previous_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = load(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses files above 2000 bytes: state and metrics fit, tensors do not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"could not save .*step-000008.*is step-000006"):
            train(
                load(run, weights="model"),
                POINTS,
                out=run,
                resume=True,
                steps=9,
                progress=False,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [c.name for c in checkpoints(run)] == ["step-000006", "step-000004"]
    assert not list((run / "checkpoints").glob(".*"))
    assert_same(load(run), before)


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "step-1", {"model": {"w": torch.ones(2)}}, {"step": 1})

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "step-2", {"model": {"w": torch.ones(2)}}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_saved_tensors_are_bit_equal_in_every_type(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).to(torch.bfloat16),
        "b": torch.randn(4, 3, dtype=torch.float64).T,
        "c": torch.tensor([float("nan"), -0.0, float("inf")]),
        "d": torch.tensor(7),
    }
    (tmp_path / "t.safetensors").write_bytes(pack(tensors))
    for name, value in unpack(tmp_path / "t.safetensors").items():
        assert value.dtype == tensors[name].dtype
        pair = [v.reshape(-1).contiguous().view(torch.uint8) for v in (value, tensors[name])]
        assert torch.equal(*pair)
    with pytest.raises(TypeError, match="'counter' is a int"):
        pack({"counter": 3})  # type: ignore[dict-item]


def test_latest_run_is_the_one_that_saved_last(tmp_path: Path) -> None:
    small_run(tmp_path / "runs/b", steps=1)
    small_run(tmp_path / "runs/a", steps=1)
    (tmp_path / "runs/c/checkpoints").mkdir(parents=True)
    assert latest_run(tmp_path / "runs") == tmp_path / "runs/a"


def test_safetensors_is_the_only_format_read(tmp_path: Path) -> None:
    # A pickle with a safetensors name is refused, not run.
    torch.save({"w": torch.ones(1)}, tmp_path / "evil.safetensors")
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.safetensors")
    assert safetensors.torch.load(pack({"w": torch.ones(1)}))["w"] == 1
