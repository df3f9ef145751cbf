"""--model: the commands on a function of the user's own and on a folder of diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.interop.model_spec import given_model
from solvers.errors import InputError, InputTypeError, NotFoundError
from tests.command import invoke, run

MINE = """
import torch
from sde_diffusion import GaussianMixture, ScoreModel, VPSDE

from means import MEANS


def model():
    return GaussianMixture(MEANS, 0.2, sde=VPSDE())


def scaled(by="1"):
    return GaussianMixture(float(by) * MEANS, 0.2, sde=VPSDE())


def wrong():
    exact = model()
    return ScoreModel(exact.noise, VPSDE(), "data", (2,))


def broken():
    raise RuntimeError("no weights here")


def shapeless():
    return ScoreModel(lambda x, t: x, VPSDE())


network = torch.nn.Linear(2, 2)
ready = model()
"""


@pytest.fixture(autouse=True)
def own_files() -> None:
    Path("mine.py").write_text(MINE)
    Path("means.py").write_text("import torch\nMEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])\n")
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    x = means[torch.arange(200) % 2] + 0.2 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    np.save("data.npy", x.numpy())


def test_the_five_commands_on_a_function_of_ones_own() -> None:
    shown = run("sample --model mine.py:model --n 20 --nfe 6 --out s")
    assert "model mine.py:model" in shown
    record = json.loads(Path("s/samples.json").read_text())
    assert record["checkpoint"]["path"] == "mine.py:model" and len(record["model_file_sha256"]) == 64
    found = np.load("s/samples.npz")["x"]
    assert abs(np.abs(found[:, 0]).mean() - 1) < 0.2
    compared = run(
        "compare --model mine.py:model --solvers ddim,unipc --nfe 6 --n 16 --paired 8 --reference-steps 50 --out c"
    )
    assert "unipc" in compared and Path("c/compare.json").is_file()
    run(
        "evaluate --model mine.py:model --reference data.npy --n 200 --nfe 6 --features pixels --metrics frechet "
        "--out e"
    )
    assert Path("e/evaluation.json").is_file()
    measured = run("likelihood --model mine.py:model --data data.npy --n 8 --solver adams --steps 20")
    assert "nats" in measured


@pytest.mark.slow
def test_a_solver_is_tuned_for_a_function_of_ones_own() -> None:
    hint = run("tune --model mine.py:model --nfe 4 --noise-samples 16 --held-out 8")
    assert "sdediff sample --model mine.py:model --nfe 4" in hint
    shown = run("sample --model mine.py:model --solver tuned --nfe 4 --n 8 --out t")
    assert "by tuned, 4 evaluations" in shown
    other = invoke("sample --model mine.py:scaled:2 --solver tuned --nfe 4 --n 8 --out u")
    assert other.exit_code == 2 and "tune again" in other.stderr


def test_a_record_names_the_model_and_does_not_run_it() -> None:
    run("sample --model mine.py:model --n 4 --nfe 5 --out s")
    Path("mine.py").write_text("open('ran', 'w').close()\n" + MINE)
    refused = invoke("sample --record s/samples.json")
    assert refused.exit_code == 2 and "--model mine.py:model" in refused.stderr
    assert not Path("ran").exists()
    changed = invoke("sample --model mine.py:model --record s/samples.json --out again")
    assert changed.exit_code == 2 and "is not the code" in changed.stderr
    Path("mine.py").write_text(MINE)
    assert "bit-equal" in run("sample --model mine.py:model --record s/samples.json --out again")
    other = invoke("sample --model mine.py:scaled:2 --record s/samples.json --out other")
    assert other.exit_code == 2 and "made with the weights" in other.stderr


def test_a_module_of_the_current_folder_words_and_instances() -> None:
    assert given_model("mine:ready").model["shape"] == [2]
    assert given_model("mine.py:scaled:3").sha256 != given_model("mine.py:scaled").sha256
    assert given_model("mine.py:ready").source_sha256 == given_model("mine:model").source_sha256


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("mine.py", InputError, "path/to/file.py:function"),
        ("mine", InputError, "path/to/file.py:function"),
        ("mine.py:modle", InputError, "did you mean 'model'"),
        ("nowhere.py:model", NotFoundError, "no file nowhere.py"),
        ("no.such.module:model", InputError, "no module no here"),
        ("mine.py:broken", InputError, r"broken\(\) in mine.py failed: RuntimeError: no weights here"),
        ("mine.py:network", InputError, "missing 1 required|failed: TypeError"),
        ("means.py:MEANS", InputTypeError, "gives a Tensor; expected a ScoreModel"),
        ("mine.py:shapeless", InputError, "without the shape of a sample"),
        ("diffusers:nowhere", NotFoundError, "no folder nowhere"),
    ],
)
def test_other_specs_are_refused(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        given_model(spec)


def test_a_run_and_a_model_are_one_too_many() -> None:
    result = invoke("sample bundled --model mine.py:model")
    assert result.exit_code == 2 and "not both" in result.stderr


def test_doctor() -> None:
    assert "no fault found" in run("doctor --model mine.py:model --data data.npy")
    wrong = invoke("doctor --model mine.py:wrong --data data.npy")
    assert wrong.exit_code == 1
    assert "parametrization" in wrong.stdout and "declare predicts='noise'" in wrong.stdout
    plain = invoke("doctor --model mine.py:wrong --data data.npy --json")
    assert json.loads(plain.stdout)["findings"][0]["fault"] == "parametrization"
    assert "no fault found" in run("doctor bundled --n 16")
    blind = invoke("doctor --model mine.py:model")
    assert blind.exit_code == 2 and "--data digits" in blind.stderr


def test_times_of_a_part_of_the_way_need_a_word() -> None:
    refused = invoke("sample --model mine.py:model --n 4 --grid 0.9,0.5,0.001 --solver ddim")
    assert refused.exit_code == 2 and "from 0.9 to 0.001" in refused.stderr and "--partial" in refused.stderr
    run("sample --model mine.py:model --n 4 --grid 0.9,0.5,0.001 --solver ddim --partial --out p")
    assert "bit-equal" in run("sample --model mine.py:model --record p/samples.json --out q")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained("pipe")
    run("sample --model diffusers:pipe --n 4 --nfe 4 --solver unipc --out s")
    assert np.load("s/samples.npz")["x"].shape == (4, 1, 8, 8)
    run("compare --model diffusers:pipe --solvers ddim,unipc --nfe 4 --n 4 --paired 4 --reference-steps 10 --out c")
    run("evaluate --model diffusers:pipe --reference digits --n 100 --nfe 2 --features pixels --metrics kid --out e")
    run("likelihood --model diffusers:pipe --data digits --n 2 --solver heun --steps 4")
    assert invoke("doctor --model diffusers:pipe --data digits --n 16").exit_code == 1  # random weights


FOREIGN = Path(os.environ.get("SDEDIFF_FOREIGN_DIR", Path(__file__).resolve().parents[4] / "shared" / "foreign"))


@pytest.mark.slow
@pytest.mark.skipif(not (FOREIGN / "loaders.py").is_file(), reason=f"no networks of others in {FOREIGN}")
def test_a_network_trained_by_others() -> None:
    model = f"{FOREIGN / 'loaders.py'}:load:mnist-geometric"
    run(f"sample --model {model} --n 100 --nfe 8 --solver unipc --grid karras --out s")
    found = np.load("s/samples.npz")["x"]
    assert found.shape == (100, 1, 28, 28) and np.abs(found).mean() < 0.6  # digits in [-0.5, 0.5]
    run(f"compare --model {model} --solvers ddim,unipc --nfe 5 --n 4 --paired 4 --reference-steps 20 --out c")
    np.save("x.npy", found)
    run(f"likelihood --model {model} --data x.npy --n 2 --solver heun --steps 4 --trace hutchinson")
    run(f"evaluate --model {model} --reference x.npy --n 100 --nfe 4 --features pixels --metrics kid --out e")
    run(f"tune --model {model} --nfe 3 --minutes 0.1")
