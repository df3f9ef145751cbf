"""Prepared data is what was decoded, whole or not there, and training from it takes the memory of a batch."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.data import as_data, load_data
from sde_diffusion.data.preparation import prepare
from sde_diffusion.data.prepared import _written, write_prepared


def photo(seed: int, height: int = 4, width: int = 6, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(root: str, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(root) / name)
    return Path(root)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["prepare", *args])
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_prepared_is_the_folder_loaded() -> None:
    write("cats", {f"{'ab'[k % 2]}/{k}.png": photo(k) for k in range(150)})
    loaded, data = load_data("cats/"), prepare("cats", "out")
    assert data.fingerprint == loaded.fingerprint == load_data("./out").fingerprint
    assert torch.equal(data.x, loaded.x) and torch.equal(data.labels, loaded.labels)
    index = torch.tensor([149, 3, 3])
    assert torch.equal(data.batch(index), loaded.batch(index)) and torch.equal(
        data.batch(slice(5, 9)), data.batch([5, 6, 7, 8])
    )
    assert json.loads(Path("out/prepared.json").read_text())["class_names"] == ["a", "b"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_kept_and_sizes_need_not_be_square(channels: int) -> None:
    write("in", {f"{k}.png": photo(k, channels=channels) for k in range(3)})
    assert prepare("in", "out").shape == (channels, 4, 6)
    assert np.array_equal(load_data("./out").x[1].permute(1, 2, 0).numpy().squeeze(), photo(1, channels=channels))


def test_resizing_crops_the_middle_and_averages() -> None:
    """A ramp of 8 columns in the middle of 16 becomes 4: the means of pairs, up to the filter's tails at the edges."""
    ramp = np.tile(np.concatenate([np.full(4, 255), np.arange(8) * 20, np.full(4, 255)]).astype(np.uint8), (8, 1))
    write("in", {"a.png": ramp})
    data = prepare("in", "out", size=(4, 4))
    row = data.x[0, 0, 2].tolist()
    assert data.shape == (1, 4, 4) and max(abs(a - b) for a, b in zip(row, [10, 50, 90, 130], strict=True)) <= 12


def test_mixed_modes_and_sizes_are_named_or_made_alike() -> None:
    write("in", {"a.png": photo(0), "b.png": photo(1, channels=1), "c.png": photo(2, 8, 12)})
    code, _, error = run("in", "--out", "out")
    assert code == 2 and "in/b.png is 6 x 4 gray, but in/a.png is 6 x 4 RGB; make all alike with --size" in error
    assert sorted(p.name for p in Path().iterdir()) == ["in"]
    code, shown, error = run("in", "--out", "out", "--mode", "L", "--size", "4x6")
    assert code == 0 and "3 images of shape (1, 4, 6)" in shown, error


def test_one_corrupt_file_among_many_is_named_and_can_be_left_out() -> None:
    write("in", {f"{k:05}.png": photo(k) for k in range(300)})
    whole = Path("in/00123.png").read_bytes()
    Path("in/00123.png").write_bytes(whole[: len(whole) // 2])
    Path("in/00200.png").write_bytes(b"not an image")
    code, _, error = run("in", "--out", "out")
    assert code == 2 and "cannot read the image in/00123.png" in error and "--skip-bad" in error
    assert not Path("out").exists() and not list(Path().glob(".*"))
    code, shown, error = run("in", "--out", "out", "--skip-bad")
    assert code == 0 and "skipped 2 in all" in error and "in/00200.png" in error and "298 images" in shown
    data = load_data("./out")
    assert np.array_equal(data.x[123].permute(1, 2, 0).numpy(), photo(124)) and len(np.load("out/x.npy")) == 298
    Path("bad").mkdir()
    Path("bad/a.png").write_bytes(b"no")
    assert "no sample could be read" in run("bad", "--out", "none", "--skip-bad")[2] and not Path("none").exists()


def test_arrays_of_other_kinds_stay_numbers() -> None:
    rng = np.random.default_rng(0)
    for name, x in {"vectors": rng.normal(size=(7, 5)), "signals": rng.normal(size=(7, 2, 9))}.items():
        np.savez(f"{name}.npz", x=x, labels=np.arange(7) % 3)
        data = prepare(f"{name}.npz", name)
        assert data.fingerprint == as_data(x, np.arange(7) % 3).fingerprint
        assert torch.equal(data.batch([6, 0]), torch.tensor(x[[6, 0]], dtype=torch.float32))


def test_parquet_holds_the_same_images() -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encoded(photo(k)), "path": f"{k}.png"} for k in range(10)]
    pq.write_table(pa.table({"img": rows, "label": [k % 4 for k in range(10)]}), "a.parquet", row_group_size=3)
    data = prepare("a.parquet", "out")
    expected = np.stack([photo(k) for k in range(10)])
    assert data.fingerprint == as_data(expected, np.arange(10) % 4).fingerprint
    plain = [encoded(photo(k)) for k in range(5)] + [b"broken"]
    Path("many").mkdir()
    pq.write_table(pa.table({"picture": plain[:3]}), "many/0.parquet")
    pq.write_table(pa.table({"picture": plain[3:]}), "many/1.parquet")
    code, _, error = run("many", "--out", "no")
    assert code == 2 and "say which holds the images: --image-column" in error
    assert "many/1.parquet, row 5" in run("many", "--out", "no", "--image-column", "picture")[2]
    data = prepare("many", "some", image_column="picture", skip_bad=True)
    assert np.array_equal(data.x.permute(0, 2, 3, 1).numpy(), expected[:5]) and data.labels is None
    Path("torn.parquet").write_bytes(Path("a.parquet").read_bytes()[:100])
    assert "cannot read torn.parquet as parquet" in run("torn.parquet", "--out", "no")[2]


def test_a_hugging_face_set_holds_the_same_images() -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(photo(k)) for k in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk("pets")
    data = prepare("hf:pets", "out")
    assert data.fingerprint == as_data(np.stack([photo(k) for k in range(6)]), [0, 1] * 3).fingerprint
    assert json.loads(Path("out/prepared.json").read_text())["class_names"] == ["cat", "dog"]
    assert "unknown split of pets 'tain'; did you mean 'train'?" in run("hf:pets", "--split", "tain", "--out", "no")[2]
    assert "unknown column of pets" in run("hf:pets", "--image-column", "pic", "--out", "no")[2]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.parquet").touch()
    for module in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for source in ("a.parquet", "hf:cifar10"):
        code, _, error = run(source, "--out", "out")
        assert code == 2 and "pip install 'sdediff[data]'" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("gone", "nothing to prepare at gone"),
        ("in --size big", "--size takes 64 or HEIGHTxWIDTH"),
        ("in --size 0", "a size is at least 1 x 1"),
        ("in --mode RBG", "unknown mode of images 'RBG'. Choices: L, LA, RGB, RGBA"),
        ("in --out full", "full exists already"),
        ("empty", "no images below empty"),
        ("x.npy --size 4", "--size would have no effect"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(args: str, message: str) -> None:
    write("in", {"a.png": photo(0)})
    write("full", {"a.png": photo(0)})
    Path("empty").mkdir()
    np.save("x.npy", np.zeros((3, 2)))
    before = sorted(Path().rglob("*"))
    code, _, error = run(*args.split())
    assert code == 2 and message in error and len(error.splitlines()) == 1, error
    assert sorted(Path().rglob("*")) == before


def test_a_folder_that_is_not_whole_is_refused() -> None:
    write("in", {f"{k}.png": photo(k) for k in range(4)})
    prepare("in", "out")
    whole = Path("out/x.npy").read_bytes()
    Path("out/x.npy").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"out is not whole: .*prepare it again"):
        load_data("./out")
    np.save("out/x.npy", np.zeros((3, 3, 4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"lists 4 samples .* the arrays have 3"):
        load_data("./out")
    Path("out/prepared.json").write_text('{"torn')
    with pytest.raises(ValueError, match=r"prepared\.json is torn"):
        load_data("./out")
    Path("out/prepared.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by this version"):
        load_data("./out")


TRAINING = """
from pathlib import Path
from sde_diffusion import ScoreModel, VPSDE, train
from sde_diffusion.data import load_data
from sde_diffusion.networks import build
data = load_data("./big")
model = ScoreModel(build("mlp", shape=data.shape, width=8, depth=1), VPSDE())
train(model, data, steps=80, batch_size=256, progress=False, device="cpu")
# Not ru_maxrss, which starts at the size of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])
"""


@pytest.mark.slow
def test_training_from_2_gib_takes_less_than_1() -> None:
    """A file with holes, which takes no disk. The system maps 64 KiB around a page that is read: the 20,480 samples
    would hold more than 1 GiB if a mapping lived on."""
    write_prepared(Path("big"), ((np.zeros((3, 64, 64), np.uint8), None) for _ in range(2)), "image", {})
    count = 2**31 // (3 * 64 * 64) + 1
    with Path("big/x.npy").open("r+b") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, 64, 64)}
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + count * 3 * 64 * 64)
    note = json.loads(Path("big/prepared.json").read_text())
    Path("big/prepared.json").write_text(json.dumps({**note, "samples": count, "written": _written(Path("big"))}))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAINING]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout) * 1024
    assert peak < 2**30


def test_arrays_that_were_replaced_are_noticed() -> None:
    np.save("a.npy", np.arange(12.0, dtype=np.float32).reshape(6, 2))
    data = prepare("a.npy", "p")
    os.utime("p/x.npy")  # touched, and the same: it is hashed once more
    assert load_data("./p").fingerprint == data.fingerprint
    other = np.load("p/x.npy")
    other[3, 1] += 1
    np.save("p/x.npy", other)
    with pytest.raises(ValueError, match="are not those that sdediff prepare wrote"):
        load_data("./p")
