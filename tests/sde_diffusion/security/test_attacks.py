"""Files from others that try to run code, to write elsewhere, or to break the program. Every case worked once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command import invoke, refused


def record(change: Callable[[dict[str, Any]], object], name: str = "b.json") -> str:
    content = json.loads(Path("set/samples.json").read_text())
    change(content)
    Path(name).write_text(json.dumps(content))
    return name


def altered(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint, and its hashes to fit."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    state = json.loads((folder / "state.json").read_text())
    content = (folder / file).read_bytes()
    state["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "state.json").write_text(json.dumps(state))


# 1. Records


@pytest.mark.parametrize("name", ["evil.py:X", "./evil.py:X", "{}/evil.py:X"])
@pytest.mark.parametrize("kind", ["Euler", "Mine"])
def test_a_record_does_not_run_a_file(home: Path, name: str, kind: str) -> None:
    Path("evil.py").write_text("open('PWNED', 'w').write('x')\nfrom solvers import SOLVERS\nX = SOLVERS['euler']\n")

    def change(c: dict[str, Any]) -> None:
        c["solver"] = {"name": name.format(Path.cwd()), "class": kind, "settings": {}}

    result = invoke("sample", "--record", record(change))
    assert not Path("PWNED").exists()
    # A class of the library needs no file; another is refused, and the refusal says how the file can be named.
    assert result.exit_code == (0 if kind == "Euler" else 2), result.output
    if kind == "Mine":
        assert "evil.py" in result.stderr and "--solver" in result.stderr


def test_a_named_file_must_be_the_one_that_made_the_samples() -> None:
    own = Path("own.py")
    own.write_text(
        "from dataclasses import dataclass\nfrom solvers.classical.euler import Euler\n"
        "@dataclass(frozen=True)\nclass Mine(Euler):\n    pass\n"
    )
    assert invoke("sample", "bundled", "--n", 2, "--nfe", 2, "--solver", "own.py:Mine", "--out", "a").exit_code == 0
    assert "never runs a file by itself" in refused("sample", "--record", "a/samples.json")
    again = invoke("sample", "--record", "a/samples.json", "--solver", "own.py:Mine")
    assert again.exit_code == 0 and "bit-equal" in again.stdout
    own.write_text(own.read_text() + "open('PWNED', 'w')\n")
    assert "not the file that made the samples" in refused(
        "sample", "--record", "a/samples.json", "--solver", "own.py:Mine"
    )
    assert not Path("PWNED").exists()
    assert "leave" in refused("sample", "--record", "a/samples.json", "--seed", 1)


def test_a_solver_file_that_ends_the_program_is_an_error() -> None:
    Path("se.py").write_text("raise SystemExit(0)\n")
    assert "se.py does not run: SystemExit" in refused("sample", "bundled", "--n", 2, "--solver", "se.py:X")


def test_a_solver_file_leaves_no_cache_beside_it() -> None:
    Path("own.py").write_text("from solvers import SOLVERS\nX = SOLVERS['euler']\n")
    assert invoke("sample", "bundled", "--n", 2, "--nfe", 2, "--solver", "own.py:X", "--out", "a").exit_code == 0
    assert not Path("__pycache__").exists()


@pytest.mark.parametrize("most", ["/../../../../x", "../../x", 1.5, -1, None, True, 10**40])
def test_numbers_of_a_record_are_numbers(home: Path, most: object) -> None:
    before = sorted(Path().rglob("*"))
    assert "nfe.most" in refused("sample", "run", "--record", record(lambda c: c["nfe"].update(most=most)))
    assert sorted(p for p in Path().rglob("*") if p.name != "b.json") == before


@pytest.mark.parametrize("name", ["x/../../../../y", "..", "a\x1b]0;title\x07", "\n", "~", "euler/../../../z"])
def test_the_name_of_a_solver_chooses_no_folder(home: Path, name: str) -> None:
    before = {p for p in Path().rglob("*") if "samples" not in p.parts}
    result = invoke("sample", "--record", record(lambda c: c["solver"].update(name=name)))
    assert result.exit_code in (0, 2), result.exception
    after = {p for p in Path().rglob("*") if "samples" not in p.parts}
    assert {p.name for p in after - before} <= {"b.json"}
    assert "\x1b" not in result.output and "\x07" not in result.output


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/model.safetensors", "/dev/zero", "~/model.safetensors"])
def test_a_record_chooses_no_model_elsewhere(home: Path, path: str) -> None:
    said = refused("sample", "--record", record(lambda c: c["checkpoint"].update(path=path)))
    assert "sdediff sample MODEL --record" in said


def test_escapes_do_not_reach_the_terminal(home: Path) -> None:
    for change in (
        lambda c: c["checkpoint"].update(path="run\x1b[2J", sha256="\x1b]0;x\x07"),
        lambda c: c["solver"].update({"class": "\x1b[31mred"}),
        lambda c: c["machine"].update(device="\x1b[2J"),
    ):
        result = invoke("sample", "bundled", "--record", record(change))
        assert result.exit_code == 2, result.output
        assert "\x1b" not in result.output and "\x07" not in result.output
    state = next(Path("run/checkpoints").glob("step-000004")) / "state.json"
    content = json.loads(state.read_text())
    content["data"]["name"] = "moons\x1b[2J\x1b]0;owned\x07"
    state.write_text(json.dumps(content))
    for args in (["inspect", "run"], ["evaluate", "run"], ["likelihood", "run"], ["compare", "run"]):
        result = invoke(*args)
        assert "\x1b" not in result.output and "\x07" not in result.output


# 2. Optimizer states


@pytest.mark.parametrize("length", [0, 1])
def test_a_short_moment_is_refused_before_the_kernel_sees_it(home: Path, length: int) -> None:
    folder = Path("run/checkpoints/step-000004")
    name = "blocks.0.first.bias.exp_avg"
    altered(folder, "optimizer.safetensors", lambda t: t.update({name: torch.zeros(length)}))
    said = refused("train", "--resume", "--out", "run", "--steps", 5)
    assert "exp_avg of blocks.0.first.bias" in said and f"shape ({length},)" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.0.first.bias.exp_avg"), "no exp_avg of blocks.0.first.bias"),
        (lambda t: t.update({"blocks.0.first.bias.step": torch.zeros(3)}), "step of blocks.0.first.bias"),
        (lambda t: t.update({"blocks.0.first.bias.exp_avg": torch.zeros(8, dtype=torch.int32)}), "torch.int32"),
        (lambda t: t["blocks.0.first.bias.exp_avg_sq"].fill_(-1.0), "negative or not finite"),
        (lambda t: t.update({"x.y.exp_avg": torch.zeros(1)}), "x.y.exp_avg"),
    ],
)
def test_a_foreign_optimizer_is_one_sentence(home: Path, change: Any, message: str) -> None:
    altered(Path("run/checkpoints/step-000004"), "optimizer.safetensors", change)
    assert message in refused("train", "--resume", "--out", "run", "--steps", 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"enter.bias": torch.zeros(8, dtype=torch.int32)}), "enter.bias is of torch.int32"),
        (lambda t: t["enter.bias"].fill_(torch.nan), "enter.bias has values that are not finite"),
        (lambda t: t.update({"enter.bias": torch.zeros(9)}), "enter.bias has shape (9,)"),
        (lambda t: t.pop("enter.bias"), "enter.bias is missing"),
    ],
)
def test_weights_are_those_of_the_network(home: Path, change: Any, message: str) -> None:
    for file in ("model.safetensors", "ema.safetensors"):
        altered(Path("run/checkpoints/step-000004"), file, change)
    assert message in refused("sample", "run", "--n", 2)
    assert message in refused("train", "--resume", "--out", "run", "--steps", 5)


@pytest.mark.parametrize("step", [-5, "7", 1.5, None, True, 10**30])
def test_the_step_of_a_checkpoint_is_a_number(home: Path, step: object) -> None:
    path = Path("run/checkpoints/step-000004/state.json")
    content = json.loads(path.read_text())
    content["step"] = step
    path.write_text(json.dumps(content))
    assert "step" in refused("train", "--resume", "--out", "run", "--steps", 5)


@pytest.mark.parametrize("name", ["../../../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ""])
def test_a_checkpoint_names_no_file_elsewhere(home: Path, name: str) -> None:
    path = Path("run/checkpoints/step-000004/state.json")
    content = json.loads(path.read_text())
    content["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(content))
    assert "plain name" in refused("sample", "run/checkpoints/step-000004")


# 3. Images


@pytest.mark.skipif(os.name != "posix", reason="a stub of Ghostscript is a shell script")
@pytest.mark.parametrize("command", ["prepare", "inspect", "train"])
def test_an_image_does_not_start_ghostscript(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin").mkdir()
    stub = Path("bin/gs")
    stub.write_text(f"#!/bin/sh\ntouch {Path.cwd()}/CALLED\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}/bin:{os.environ['PATH']}")
    Path("folder").mkdir()
    Path("folder/a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    args = {"prepare": ["folder", "--out", "p"], "inspect": ["./folder"], "train": ["--data", "./folder"]}[command]
    assert "cannot read the image" in refused(command, *args)
    assert not Path("CALLED").exists()


# 7. Links in a run


def test_going_on_with_a_run_deletes_nothing_outside_of_it(home: Path) -> None:
    shutil.move("run/checkpoints", "outside")
    for name in (".keepme.partial", ".step-000001.0123456789abcdef.partial", "step-000001"):
        (Path("outside") / name).mkdir()
        (Path("outside") / name / "a").write_text("mine")
    before = {p: p.read_bytes() for p in Path("outside").rglob("*") if p.is_file()}
    Path("run/checkpoints").symlink_to(Path("outside").absolute())
    assert "is a link" in refused("train", "--resume", "--out", "run", "--steps", 9)
    assert {p: p.read_bytes() for p in Path("outside").rglob("*") if p.is_file()} == before


def test_a_checkpoint_that_is_a_link_is_removed_as_a_link(home: Path) -> None:
    outside = Path("outside")
    shutil.copytree("run/checkpoints/step-000002", outside)
    shutil.rmtree("run/checkpoints/step-000002")
    Path("run/checkpoints/step-000002").symlink_to(outside.absolute())
    assert invoke("train", "--resume", "--out", "run", "--steps", 8).exit_code == 0
    assert sorted(p.name for p in outside.iterdir()) and (outside / "state.json").is_file()
    assert not Path("run/checkpoints/step-000002").is_symlink()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_files_of_a_run_that_are_links_are_not_written_through(home: Path, name: str) -> None:
    shutil.move(f"run/{name}", "mine.txt")
    before = Path("mine.txt").read_bytes()
    Path(f"run/{name}").symlink_to(Path("mine.txt").absolute())
    assert "is a link" in refused("train", "--resume", "--out", "run", "--steps", 9)
    assert Path("mine.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("samples", "sample run --n 2 --nfe 1"),
        ("samples", "train --resume --out run --steps 9"),
        ("tuned", "train --resume --out run --steps 9"),
        ("tuned", "tune run --nfe 1 --noise-samples 16 --held-out 2"),
        ("tuned", "sample run --solver tuned --nfe 2 --n 2"),
        ("compare", "compare run --solvers ddim --nfe 1 --n 4 --paired 2 --reference-steps 4"),
        ("evaluation", "evaluate run --n 8 --nfe 1 --metrics kid --draws 2 --processes 1"),
    ],
)
def test_results_are_not_written_through_a_link_in_a_run(home: Path, name: str, command: str) -> None:
    shutil.rmtree(f"run/{name}", ignore_errors=True)
    Path("outside").mkdir()
    Path(f"run/{name}").symlink_to(Path("outside").absolute())
    assert f"run/{name} is a link" in refused(*command.split())
    assert not list(Path("outside").iterdir())
