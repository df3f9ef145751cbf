"""Samples in shards: the bits of one run, whatever was interrupted, lost or damaged on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from sde_diffusion import VPSDE, ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling import generate, sharded
from sde_diffusion.sampling.job import new_job
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.sharded_set import ShardedSet, alone, create, open_set, whole_set
from solvers.errors import ExistsError, InputError
from tests import command

run = partial(command.invoke, "sample")

Launch = Callable[[int, Callable[[], Any]], list[Any]]
N, SETTINGS = 150, SamplingSettings("ddim", nfe=2, batch_size=32)


def spoken(*args: str) -> tuple[int, str]:
    """The exit code of a command, and what it says."""
    result = run(*args)
    return result.exit_code, result.output


def made(*args: str) -> dict[str, Any]:
    """The record of the samples that a command makes."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if line.startswith("record ")]
    return json.loads(Path(line.removeprefix("record ")).read_text())


def begun(form: str = "npz", size: int = 64, labels: list[int] | None = None) -> tuple[Any, ShardedSet]:
    job = new_job(find_model("bundled"), N, SETTINGS, shards=sharded.shards_for(N, form, size, 32), device="cpu")
    return job, create(Path("set"), job.record)


def fill(job: Any, found: ShardedSet) -> Any:
    with Pool(sharded.work_of(job)) as pool:
        assert pool is not None
        return sharded.run_sharded(job, found, pool)


@pytest.mark.parametrize("form", ["npz", "safetensors", "webdataset"])
def test_shards_hold_the_bits_of_one_run_in_every_format(form: str) -> None:
    whole = generate.draw(find_model("bundled"), N, SETTINGS)
    job, found = begun(form)
    record = fill(job, found)
    assert record["x"] == whole.record["x"] and record["nfe"] == whole.record["nfe"]
    parts = list(found.parts())
    assert [len(part.x) for part in parts] == [64, 64, 22]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.seeds for part in parts]), whole.seeds)


def test_the_files_are_those_of_their_formats() -> None:
    for form in ("npz", "safetensors", "webdataset"):
        job, found = begun(form)
        fill(job, found)
        x = found.read(1)[0].x.numpy()
        path = found.path(1)
        if form == "npz":
            with np.load(path) as arrays:
                own = arrays["x"]
        elif form == "safetensors":
            own = load_file(path)["x"]
        else:
            with tarfile.open(path) as tar:
                names = tar.getnames()
                file = tar.extractfile("000000065.npy")
                assert file is not None
                second = np.load(io.BytesIO(file.read()))
                seed = json.load(tar.extractfile("000000065.json"))  # type: ignore[arg-type]
            assert names[:2] == ["000000064.json", "000000064.npy"] and len(names) == 128 and seed == {"seed": 65}
            own = np.stack([x[0], second, *x[2:]])
        np.testing.assert_array_equal(own, x)
        os.rename("set", f"kept-{form}")


def test_lost_torn_damaged_and_exchanged_shards_are_made_again_and_the_others_kept() -> None:
    job, found = begun(size=32)
    before = fill(job, found)
    content = {number: found.path(number).read_bytes() for number in range(5)}
    kept = found.path(4).stat().st_mtime_ns
    found.path(0).unlink()
    found.path(1).with_suffix(".json").unlink()
    found.path(2).write_bytes(content[2][:-7])
    found.path(3).write_bytes(content[3][:300] + bytes([content[3][300] ^ 1]) + content[3][301:])
    assert found.missing() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match=r"shard-000003\.npz is damaged"):
        found.read(3)
    assert fill(job, found) == before
    assert {number: found.path(number).read_bytes() for number in range(5)} == content
    assert found.path(4).stat().st_mtime_ns == kept
    for ending in (".npz", ".json"):  # whole files, under each other's names
        found.path(0).with_suffix(ending).rename("aside")
        found.path(1).with_suffix(ending).rename(found.path(0).with_suffix(ending))
        Path("aside").rename(found.path(1).with_suffix(ending))
    with pytest.raises(CheckpointError, match="does not hold samples 0 to 31"):
        found.read(0)
    assert found.missing() == [0, 1]
    assert fill(job, found) == before


def test_a_set_has_one_writer_and_is_read_when_it_is_whole() -> None:
    job, found = begun()
    with alone(found), pytest.raises(ExistsError, match="another process writes into set"), alone(found):
        pass
    (found.folder / "shards" / ".shard-000000.npz.0123456789abcdef.partial").write_text("killed")
    with alone(found):
        assert not list((found.folder / "shards").iterdir())
    with pytest.raises(InputError, match="not all there yet: sdediff sample --resume set"):
        whole_set(Path("set"))
    record = fill(job, found)
    assert found.finish(record) and whole_set(Path("set")).record["x"] == record["x"]


def test_the_command_resumes_and_repeats_a_set() -> None:
    options = ["bundled", "--n", "90", "--nfe", "2", "--batch-size", "16"]
    whole = made(*options, "--out", "one")
    first = made(*options, "--out", "many", "--shard-size", "30", "--shards", "safetensors")
    assert first["x"] == whole["x"] and first["shards"] == {"size": 32, "form": "safetensors"}
    Path("many/samples.json").unlink()
    Path("many/shards/shard-000001.safetensors").unlink()
    assert made("--resume", "many") == first
    assert made("--resume", "many") == first  # all is there
    again = run("--record", "many/samples.json", "--out", "again")
    assert "bit-equal to the samples of the record" in again.stdout, again.output
    assert len(list(Path("again/shards").iterdir())) == 6
    assert Path("many/samples.png").read_bytes() == Path("again/samples.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resume none", "nothing to resume in none"),
        ("--resume set --n 5", "the record holds all settings of its samples; leave out --n"),
        ("--resume set --out other", "leave out --out"),
        ("--resume set --shards npz", "leave out --shards"),
        ("--resume set --record set/job.json", "give one of them"),
        ("bundled --n 4 --shards zip", "unknown shards 'zip'"),
        ("bundled --n 4 --shard-size 0", "shard_size (--shard-size)"),
    ],
)
def test_bad_input_is_refused(words: str, message: str) -> None:
    begun()
    result = run(*words.split())
    assert result.exit_code == 2 and message in result.stderr, result.output


def test_large_sets_are_shards_by_themselves() -> None:
    assert sharded.shards_for(49_999, None, None, 256) is None
    assert sharded.shards_for(50_000, None, None, 250) == {"size": 1250, "form": "npz"}
    assert sharded.shards_for(None, "webdataset", 10, 256) == {"size": 256, "form": "webdataset"}


def test_labels_go_in_turn_across_shards(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom sde_diffusion import VPSDE, ScoreModel\nfrom sde_diffusion.networks import build\n"
        "def model():\n    torch.manual_seed(0)\n"
        "    return ScoreModel(build('mlp', shape=(2,), width=8, classes=3), VPSDE(), shape=(2,))\n"
    )
    options = ["--model", "mine.py:model", "--n", "50", "--nfe", "2", "--batch-size", "4", "--label", "2,0,1"]
    for folder, more in (("one", []), ("many", ["--shard-size", "8"])):
        made(*options, "--out", folder, *more)
    with np.load("one/samples.npz") as arrays:
        labels = arrays["labels"]
    parts = list(open_set(Path("many")).parts())
    assert torch.cat([part.labels for part in parts if part.labels is not None]).tolist() == labels.tolist()
    assert labels[:4].tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work_and_give_the_same_bits(launch: Launch, world: int) -> None:
    options = ["bundled", "--n", "130", "--nfe", "2", "--batch-size", "16"]
    one = made(*options, "--out", "one")
    for folder, more in (("file", []), ("shards", ["--shard-size", "16"])):
        first, *others = launch(world, lambda folder=folder, more=more: spoken(*options, "--out", folder, *more))
        assert first[0] == 0 and f" on {world} processes" in first[1], first
        assert others == [(0, "")] * (world - 1)  # one process speaks
        record = json.loads(Path(folder, "samples.json").read_text())
        assert record["x"] == one["x"]
    x, y = (np.load(Path(folder, "samples.npz"))["x"] for folder in ("one", "file"))
    np.testing.assert_array_equal(x, y)


class Slow(nn.Module):
    """A network that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("mlp", shape=(2,), width=8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time.sleep(0.004)
        return self.inner(x, t)


def killed(n: int, kills: int, seed: int) -> tuple[str, int]:
    """The hash of a set in shards whose sampling is killed several times, and the shards that were there meanwhile."""
    torch.manual_seed(0)
    model = ScoreModel(Slow(), VPSDE(), shape=(2,))
    job = new_job(find_model("bundled"), n, SETTINGS, shards=sharded.shards_for(n, "npz", 32, 32), device="cpu")
    job.record["shape"] = [2]
    job = type(job)(model, {}, n, job.settings, job.run, job.record)
    found, chance, seen = create(Path(f"set-{kills}"), job.record), random.Random(seed), 0
    for _ in range(kills):
        child = get_context("fork").Process(target=fill, args=(job, found))
        child.start()
        time.sleep(chance.uniform(0.05, 0.3))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        seen = found.count - len(found.missing())
    with alone(found):
        return fill(job, found)["x"]["sha256"], seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
@pytest.mark.slow
def test_ten_kills_lose_nothing_and_repeat_nothing() -> None:
    n = 32 * 100
    (torn, seen), (whole, _) = killed(n, 10, 3), killed(n, 0, 3)
    assert torn == whole
    assert 10 < seen < 100  # the kills came in the middle of the work
    found = open_set(Path("set-10"))
    seeds = torch.cat([part.seeds for part in found.parts()])
    assert torch.equal(seeds, seeds_of(0, n))
    names = sorted(path.name for path in (found.folder / "shards").iterdir())
    assert names == sorted(f"shard-{k:06d}.{end}" for k in range(100) for end in ("json", "npz"))
    x = torch.cat([part.x for part in found.parts()])
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == whole
