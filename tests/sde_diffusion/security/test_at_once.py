"""Commands that start at the same instant: each leaves a whole result, and none has a part of another's.

``SDEDIFF_ROUNDS=50 pytest -m slow tests/sde_diffusion/security/test_at_once.py`` runs the full number of rounds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.files.writing import new_folder, sweep, temporary, write_file
from sde_diffusion.storage.checkpoint import checkpoint_at, load
from sde_diffusion.storage.run_folder import Run

ROUNDS = int(os.environ.get("SDEDIFF_ROUNDS", "3"))
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What functions return that are called at the same instant, each in a process of its own."""
    context = get_context("fork")
    barrier, pipes, processes = context.Barrier(len(jobs)), [], []

    def call(job: Callable[[], Any], writer: Any) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        try:
            writer.send(job())
        except BaseException as error:
            writer.send(error)

    for job in jobs:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=call, args=(job, writer))
        process.start()
        writer.close()
        pipes.append(reader)
        processes.append(process)
    found = [pipe.recv() if pipe.poll(120) else TimeoutError() for pipe in pipes]
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
    return found


def command(*args: object) -> Callable[[], tuple[int, str]]:
    def job() -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(a) for a in args])
        return result.exit_code, result.output

    return job


def whole_run(path: Path) -> None:
    """A run with all its parts, whose model can be loaded and which can be resumed."""
    assert {p.name for p in path.iterdir()} >= {"config.json", "config.toml", "metrics.jsonl", "checkpoints", "samples"}
    assert json.loads((path / "config.json").read_text())["format"] == 1
    load(checkpoint_at(path))


def whole_samples(folder: Path) -> int:
    """The seed of a set whose record, arrays and picture belong together."""
    record = json.loads((folder / "samples.json").read_text())
    with np.load(folder / "samples.npz") as arrays:
        assert hashlib.sha256(arrays["x"].tobytes()).hexdigest() == record["x"]["sha256"]
        assert len(arrays["x"]) == record["n"]
        assert arrays["seeds"][0] == record["seed"] * 2**32
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    return record["seed"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    np.save(root / "x.npy", np.random.default_rng(0).standard_normal((32, 2)).astype(np.float32))
    args = ["train", "--data", str(root / "x.npy"), "--steps", "1", "--batch-size", "4", "--width", "8", "--depth", "1"]
    assert CliRunner().invoke(app, [*args, "--out", str(root / "run")]).exit_code == 0
    return root


@forks
@pytest.mark.slow
def test_four_trainings_into_one_folder_and_eight_samples_of_one_run(made: Path) -> None:
    for k in range(ROUNDS):
        train = command("train", "--data", made / "x.npy", "--steps", 2, "--batch-size", 4, "--width", 8, "--depth", 1,
                        "--out", f"o{k}")  # fmt: skip
        default = [command("sample", made / "run", "--n", 40, "--nfe", 2, "--seed", s) for s in range(4)]
        named = [
            command("sample", made / "run", "--n", 40, "--nfe", 2, "--seed", s, "--out", f"s{k}") for s in range(4)
        ]
        results = at_once([train] * 4 + default + named)
        assert all(isinstance(result, tuple) for result in results), results
        codes = [code for code, _ in results]
        assert sorted(codes[:4]) == [0, 2, 2, 2], results[:4]
        assert all("exists already" in text or "another process" in text for code, text in results[:4] if code)
        whole_run(Path(f"o{k}"))
        resumed = CliRunner().invoke(app, ["train", "--resume", "--out", f"o{k}", "--steps", "3"])
        assert resumed.exit_code == 2 and "--data" in resumed.stderr  # the data is elsewhere and has to be named
        args = ["train", "--resume", "--out", f"o{k}", "--steps", "3", "--data", str(made / "x.npy")]
        assert CliRunner().invoke(app, args).exit_code == 0
        # A set with --out that exists when the command begins is refused; one that comes in between gets the next name.
        assert codes[4:8] == [0] * 4, results[4:8]
        taken = [text for code, text in results[8:] if code]
        assert len(taken) < 4 and all("exists already" in text for text in taken)
        sets = [p for p in sorted(Path().glob(f"s{k}*"))]
        assert len(sets) == 4 - len(taken) and len({whole_samples(p) for p in sets}) == len(sets)
        own = sorted(p for p in (made / "run/samples").iterdir() if p.name.startswith("pf-ode-nfe2"))
        assert sorted(map(whole_samples, own)) == [0, 1, 2, 3]
        for folder in own:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        assert not [p for p in (*Path().rglob(".*"), *(made / "run").rglob(".*"))]


@forks
def test_a_run_is_made_by_exactly_one_process() -> None:
    groups = {name: {"w": torch.zeros(100)} for name in ("model", "ema", "optimizer")}
    config: Any = {"format": 1, "train": {}, "model": {}, "data": {}}

    def make(k: int, who: int) -> Callable[[], str]:
        def job() -> str:
            Run.create(f"r{k}", {**config, "train": {"who": who}}, groups, {"step": 0}).close()
            return "made"

        return job

    for k in range(20):
        found = at_once([make(k, who) for who in range(4)])
        assert [type(f) for f in found].count(str) == 1, found
        assert all(isinstance(f, (str, FileExistsError)) for f in found), found
        winner = next(i for i, f in enumerate(found) if f == "made")
        run = Path(f"r{k}")
        assert json.loads((run / "config.json").read_text())["train"] == {"who": winner}
        files = {p.name for p in (run / "checkpoints/step-000000").iterdir()}
        assert files == {"state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"}
        assert not list(Path().glob(".*"))


@forks
def test_folders_that_finish_together_get_names_of_their_own() -> None:
    def make(k: int) -> Callable[[], str]:
        def job() -> str:
            with new_folder(Path("set"), taken="next") as new:
                for name in "abc":
                    write_file(new.temporary / name, str(k).encode())
            return new.path.name

        return job

    found = at_once([make(k) for k in range(8)])
    assert sorted(found) == ["set", *(f"set-{k}" for k in range(2, 9))]
    for k, name in enumerate(found):
        assert {p.read_text() for p in Path(name).iterdir()} == {str(k)}


@forks
def test_one_file_is_written_once() -> None:
    def make(k: int) -> Callable[[], int]:
        def job() -> int:
            write_file(Path("x.txt"), str(k).encode() * 10_000, replace=False)
            return k

        return job

    found = at_once([make(k) for k in range(6)])
    (winner,) = [f for f in found if isinstance(f, int)]
    assert Path("x.txt").read_text() == str(winner) * 10_000
    assert [p.name for p in Path().iterdir()] == ["x.txt"]


def test_what_a_killed_command_left_is_removed_once_it_is_old() -> None:
    held, dead, mine = temporary(Path("set")), temporary(Path("set")), Path(".set.partial")
    for folder in (held, dead, mine):
        folder.mkdir()
        (folder / "x").write_text("1")
    sweep(Path())
    assert dead.exists()  # it may have been made this moment, by a process that is about to lock it
    for folder in (held, dead, mine):
        os.utime(folder, (0, 0))
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    sweep(Path())
    os.close(handle)
    assert held.exists() and mine.exists() and not dead.exists()
