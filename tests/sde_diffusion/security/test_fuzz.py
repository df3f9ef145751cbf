"""Thousands of odd command lines and edited files: each ends with a result or with one sentence.

The cases come from a seed, so that a failure can be run again: SDEDIFF_FUZZ="first:last" chooses cases by number, and
SDEDIFF_FUZZ_CASES how many there are. Two processes are forked, each in a copy of a small world of runs, records,
references and data; a case that crashes or hangs ends its process and is counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import time
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.storage.tuned_solver import Tuned, save_tuned
from solvers import SOLVERS

words = str.split
CASES = int(os.environ.get("SDEDIFF_FUZZ_CASES", "3000"))
SLOWEST = 30.0  # seconds that a case may take, on a machine under load
WORKERS = 2

ODD = [
    "0", "-1", "1", "2", "3", "1.5", "nan", "inf", "-inf", "1e400", "", " ", "abc", "None", "true", "\uff11", "1,2",
    "1,1", "5,", ",", "99999999999999999999", "9223372036854775807", "-9223372036854775809", "../x", "/dev/null",
    "/dev/zero", "/etc/passwd", "~/nothing", ".", "run", "x.npy", "fifo.npy", "objects.npy", "images", "\x1b[2J",
    "\u202e", "\U0001f600", "a" * 300, "a\x00b", "--", "-", "%s", "{}", "[red]", "own.py:Mine", "own.py:Nothing",
    "own.py", "bad.py:X", "exit.py:X", "ref.safetensors", "model.safetensors", "set", "set/samples.json", "prepared",
    "latin\udce9",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, 10**30, 10**400, "", "x", "\x1b[2J", "../../x", "/etc/passwd", [], {},
    [[]], [1, 2], [None], {"a": 1}, "nan", "9" * 400, 2**53, 10**9, -(10**9),
]  # fmt: skip
FIRST = {
    "sample": words("sample run --n 2 --nfe 3 --out out"),
    "inspect": words("inspect x.npy --picture out.png"),
    "train": words("train --data x.npy --steps 1 --batch-size 4 --network mlp --width 8 --depth 1 --out out"),
    "evaluate": words(
        "evaluate run --n 8 --nfe 2 --processes 1 --metrics sliced-wasserstein --draws 2 --reference x.npy --out out"
    ),
    "likelihood": words("likelihood run --n 2 --solver heun --steps 2 --data x.npy --out out"),
    "compare": words("compare run --solvers ddim --nfe 2 --n 4 --paired 2 --reference-steps 4 --data x.npy --out out"),
    "prepare": words("prepare images --out out"),
    "tune": words("tune run --nfe 0 --noise-samples 16 --held-out 2 --out out"),
    "restore": words("restore superres small.png --run bundled --n 2 --nfe 3 --method ddnm --factor 2 --out out"),
    "edit": words("edit variations x.npy --run run --n 2 --nfe 3 --strength 0.3 --out out"),
    "show": words("show trajectories run --nfe 2 --n 2 --out out.png"),
    "doctor": words("doctor run --n 8 --data x.npy"),
}
INPAINT = words("restore inpaint mask.png --run bundled --mask mask.png --n 1 --nfe 2 --out out")
FIGURES = words("schedule forward reverse score trajectories film")
MORE = {
    "sample": words(
        "--solver --steps --grid --eta --seed --batch-size --label --guidance --device --record --profile --nfe --n"
    ),
    "inspect": words("--data-dir --force --json --picture"),
    "train": words(
        "--sde --predicts --beta-min --beta-max --lr --warmup --schedule --weight-decay --clip --weight "
        "--time-sampling --t-min --labels --drop-label --flip --augment --ema --ema-width "
        "--snapshot-every --precision --accumulate --tracker --seed --device --log-every "
        "--checkpoint-every --keep --channels --blocks --dropout --embedding --config --data-dir "
        "--resume --force"
    ),
    "evaluate": words(
        "--split --data-dir --features --weights --metrics --solver --steps --grid --eta --seed "
        "--batch-size --range --save-reference --device --n --draws"
    ),
    "likelihood": words("--split --trace --probe --probes --tolerance --t-min --elbo --seed --batch-size --device"),
    "compare": words("--seed --batch-size --data-dir --device --json"),
    "prepare": words("--size --mode --skip-bad --split --image-column --label-column"),
    "tune": words("--seed --batch-size --device"),
    "restore": words("--mask --factor --blur --noise --simulate --method --solver --seed --device --run --n --nfe"),
    "edit": words("--strength --to --n --label --guidance --solver --nfe --tolerance --seed --device --run --model"),
    "show": words("--sde --solver --nfe --n --seed --device --out"),
    "doctor": words("--data --data-dir --n --seed --device --json --model"),
}
FLAGS = {"--profile", "--force", "--json", "--labels", "--flip", "--resume", "--skip-bad", "--simulate"}
GOOD = {
    "--solver": ["heun", "ddpm", "rk45", "pc", "tuned"],
    "--grid": ["karras", "1,0.5,0"],
    "--features": ["pca", "pixels"],
    "--sde": ["vp", "ve", "flow", "ddpm", "vp,edm"],
    "--method": ["replacement", "dps", "pigdm"],
    "--mask": ["mask.png", "small.png"],
    "--model": ["own.py:Mine", "bad.py:X", "diffusers:images", "bundled"],
}
# Words of Python, numpy and torch that mean nothing to a user.
RAW = re.compile(
    r"has no attribute|not subscriptable|must be real number|Overflow when|allow_pickle|enforce fail|"
    r"unsupported operand|unexpected keyword|positional argument|argument '\w+' must be|NoneType|list indices|"
    r"not iterable|unhashable|Traceback|object of type|cannot unpack|could not convert string|invalid literal|"
    r"_ArrayMemoryError|errno"
)


def world(root: Path) -> None:
    """What the commands act on; made in the current folder."""
    runner = CliRunner()
    points = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    np.save("x.npy", points)
    np.savez("x.npz", x=points, labels=np.arange(64) % 3)
    np.save("objects.npy", np.array([[{}]], object), allow_pickle=True)
    for k in range(3):
        Path(f"images/{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 80 * k, np.uint8)).save(f"images/{k % 2}/{k}.png")
    Image.fromarray(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)).save("small.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 32).reshape(8, 8)).save("mask.png")
    os.mkfifo("fifo.npy")
    Path("own.py").write_text(
        "from dataclasses import dataclass\nfrom solvers.classical.euler import Euler\n"
        "@dataclass(frozen=True)\nclass Mine(Euler):\n    pass\n"
    )
    Path("bad.py").write_text("1 / 0\n")
    Path("exit.py").write_text("raise SystemExit(0)\n")
    Path("options.toml").write_text("steps = 2\nlabels = false\n[network]\nwidth = 8\n")
    for args in (
        ["train", *FIRST["train"][1:-1], "run", "--ema-width", "0.1", "--snapshot-every", "1"],
        ["sample", "run", "--n", "3", "--nfe", "3", "--out", "set"],
        ["prepare", "images", "--out", "prepared"],
        [*FIRST["evaluate"][:-2], "--save-reference", "ref.safetensors", "--out", "run/evaluated"],
    ):
        done = runner.invoke(app, args)
        assert done.exit_code == 0, (args, done.output)
    stored = checkpoint_at("run")
    export(load(stored), "model.safetensors", data=stored.data, step=stored.step)
    save_tuned("run/tuned/nfe-3.json", Tuned(SOLVERS["unipc"], 3, 0.1, 0.2, {"start": 0.1}, 0.01), stored, seed=0)


def keys(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of JSON."""
    inner = (
        content.items() if isinstance(content, dict) else enumerate(content[:3]) if isinstance(content, list) else ()
    )
    return [found for key, value in inner for found in [(*path, key), *keys(value, (*path, key))]]


def edited(content: Any, rng: random.Random) -> Any:
    """JSON with one entry deleted or replaced."""
    *way, last = rng.choice(keys(content))
    place = content
    for key in way:
        place = place[key]
    if rng.random() < 0.3:
        del place[last]
    else:
        place[last] = rng.choice(VALUES)
    return content


def edit_header(path: Path, rng: random.Random) -> None:
    """Change the description in a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"]["sdediff"] = json.dumps(edited(json.loads(header["__metadata__"]["sdediff"]), rng))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def edit_bytes(path: Path, rng: random.Random) -> None:
    """Cut a file, or change some of its bytes."""
    raw = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        raw = raw[: rng.randrange(len(raw))]
    for _ in range(rng.choice([1, 1, 4])):
        if raw:
            raw[rng.randrange(min(len(raw), rng.choice([16, 200, 10**9])))] = rng.randrange(256)
    path.write_bytes(bytes(raw))


def mend_hash(folder: Path) -> None:
    """Make the hashes of a checkpoint fit its files, as who edits them would."""
    state = json.loads((folder / "state.json").read_text())
    for name in state["files"]:
        content = (folder / name).read_bytes()
        state["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "state.json").write_text(json.dumps(state))


def case(number: int) -> tuple[list[str], Path | None]:
    """The command of a case, and the file that was edited for it."""
    rng = random.Random(number)
    if rng.random() < 0.5:
        return odd_command(rng), None
    checkpoint = Path("run/checkpoints/step-000001")
    sample = ["sample", "run", "--n", "2", "--nfe", "3", "--out", "out"]
    resume = ["train", "--resume", "--out", "run", "--steps", "2"]
    readers: list[tuple[Path, Any, list[list[str]]]] = [
        (Path("run/config.json"), edited, [resume, ["inspect", "run"]]),
        (checkpoint / "state.json", edited, [resume, sample, ["inspect", "run"], FIRST["evaluate"], FIRST["compare"],
                                           FIRST["show"], FIRST["doctor"]]),
        (Path("set/samples.json"), edited, [["sample", "--record", "set/samples.json", "--out", "out"],
                                            ["sample", "run", "--record", "set/samples.json", "--out", "out"],
                                            ["evaluate", "set", "--reference", "x.npy", "--metrics", "frechet"]]),
        (Path("run/tuned/nfe-3.json"), edited, [[*sample, "--solver", "tuned"]]),
        (Path("prepared/prepared.json"), edited, [["inspect", "./prepared"], ["train", *FIRST["train"][1:], "--data",
                                                                             "./prepared"]]),
        (Path("model.safetensors"), edit_header, [["inspect", "model.safetensors"],
                                                  ["sample", "model.safetensors", *sample[2:]]]),
        (Path("ref.safetensors"), edit_header, [[*FIRST["evaluate"], "--reference", "ref.safetensors"]]),
        (Path("model.safetensors"), edit_bytes, [["inspect", "model.safetensors"],
                                                 ["sample", "model.safetensors", *sample[2:]]]),
        (Path("ref.safetensors"), edit_bytes, [[*FIRST["evaluate"], "--reference", "ref.safetensors"]]),
        (checkpoint / "optimizer.safetensors", edit_bytes, [resume]),
        (checkpoint / "ema.safetensors", edit_bytes, [sample, resume]),
        (Path("x.npy"), edit_bytes, [["inspect", "x.npy"], FIRST["train"]]),
        (Path("x.npz"), edit_bytes, [["inspect", "x.npz"], ["prepare", "x.npz", "--out", "out"]]),
        (Path("images/0/0.png"), edit_bytes, [["inspect", "./images"], FIRST["prepare"],
                                                 [*FIRST["prepare"], "--skip-bad"]]),
        (Path("small.png"), edit_bytes, [FIRST["restore"]]),
        (Path("mask.png"), edit_bytes, [INPAINT]),
        (Path("prepared/x.npy"), edit_bytes, [["inspect", "./prepared"]]),
        (Path("run/metrics.jsonl"), edit_bytes, [resume]),
        (Path("options.toml"), edit_bytes, [[*FIRST["train"], "--config", "options.toml"]]),
    ]  # fmt: skip
    path, change, commands = rng.choice(readers)
    if change is edited:
        path.write_text(json.dumps(edited(json.loads(path.read_text()), rng)))
    else:
        change(path, rng)
    if path.parent == checkpoint and change is edit_bytes and rng.random() < 0.7:
        mend_hash(checkpoint)
    return rng.choice(commands), path


def odd_command(rng: random.Random) -> list[str]:
    command = rng.choice([*FIRST, "sample", "sample", "inspect"])
    args = list(FIRST[command])
    if command == "show":
        figure = args[1] = rng.choice(FIGURES)
        if figure == "schedule":
            args[2:-2] = []
        else:
            args[2] = "bundled" if rng.random() < 0.3 else "run"
            args[-1] = "out.gif" if figure == "film" else "out.png"
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.4 and len(args) > 2:
            # A value of the good command; never a whole number that would be much work.
            values = [k for k in range(1, len(args)) if not args[k].startswith("--")]
            args[1 if command == "tune" else rng.choice(values)] = rng.choice(ODD)
        else:
            option = rng.choice(MORE[command])
            args += [option] if option in FLAGS else [option, rng.choice(GOOD.get(option, ODD) + ODD[:8])]
    return args


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    return {str(p): (s.st_size, s.st_mtime_ns) for p in root.rglob("*") if not p.is_dir() for s in [p.lstat()]}


def judge(args: list[str], outcome: Any, changed: list[str]) -> str | None:
    """What is wrong with how a command ended."""
    code, text = outcome.exit_code, outcome.output
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        return "".join(traceback.format_exception(outcome.exception)[-3:])
    # Of doctor, 1 says that it found a fault of the model.
    if code not in ((0, 1, 2) if args[0] == "doctor" else (0, 2)) or "please report it" in text:
        return f"exit code {code}: {text[-700:]}"
    if code == 2 and RAW.search(text):
        return f"raw words: {text[-400:]}"
    if "\x1b" in text:
        return f"an escape was printed: {text[-300:]!r}"
    if changed and "../x" not in args:  # which the user named
        return f"changed: {changed}"
    if left := [p for p in Path().rglob("*.partial")]:
        return f"left behind: {left}"
    if code == 0 and args[0] == "sample" and Path("out/samples.json").is_file():
        made = json.loads(Path("out/samples.json").read_text())
        with np.load("out/samples.npz") as arrays:
            if (
                hashlib.sha256(arrays["x"].tobytes()).hexdigest() != made["x"]["sha256"]
                or len(arrays["x"]) != made["n"]
            ):
                return "exit 0 with arrays that are not those of the record"
            if not np.isfinite(arrays["x"]).all():
                return "exit 0 with samples that are not finite"
    return None


def work(numbers: list[int], root: Path, results: Any) -> None:
    """Run cases in a world of their own; report each before and after."""
    os.chdir(root)
    torch.set_num_threads(1)
    sealed = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and not p.is_symlink()}
    for number in numbers:
        results.send(("start", number))
        args, path = case(number)
        before = snapshot(root.parent)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = CliRunner().invoke(app, args)
        after = snapshot(root.parent)
        mine = (f"{root}/run/", str(root / "fifo.npy"))
        changed = [p for p, what in before.items() if after.get(p) != what and not p.startswith(mine)]
        changed += [p for p in after if p not in before and not p.startswith(f"{root}/")]
        wrong = judge(args, outcome, changed)
        results.send(
            ("end", number, outcome.exit_code, None if wrong is None else f"{number}: {args} ({path}): {wrong}")
        )
        # Everything is put back: what is new is removed, what was there has its old bytes.
        shutil.rmtree(root.parent / "x", ignore_errors=True)
        for p in sorted(Path().rglob("*"), reverse=True):
            if p not in sealed and p.is_file():
                p.unlink()
            elif p.is_dir() and not any(p.iterdir()):
                p.rmdir()
        for p, content in sealed.items():
            if not p.is_file() or p.read_bytes() != content:
                p.parent.mkdir(parents=True, exist_ok=True)
                p.write_bytes(content)
    results.send(("done",))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forked processes")
@pytest.mark.filterwarnings("ignore")
def test_every_case_ends_with_a_result_or_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, last = os.environ.get("SDEDIFF_FUZZ", f"0:{CASES}").partition(":")
    numbers = list(range(int(first), int(last)))
    worlds = [tmp_path / f"place-{k}" / "world" for k in range(WORKERS)]
    worlds[0].mkdir(parents=True)
    os.chdir(worlds[0])
    world(worlds[0])
    for other in worlds[1:]:
        shutil.copytree(worlds[0], other, ignore=shutil.ignore_patterns("fifo.npy"))
        os.mkfifo(other / "fifo.npy")
    for place in worlds:
        (place.parent / "canary.txt").write_text("mine")
    begin, faults, codes = time.monotonic(), [], {0: 0, 2: 0}
    context = get_context("fork")
    queues = [numbers[k::WORKERS] for k in range(WORKERS)]
    running: dict[int, tuple[Any, Any]] = {}

    def start(k: int) -> None:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(queues[k], worlds[k], writer))
        process.start()
        writer.close()
        running[k] = (process, reader)

    for k in range(WORKERS):
        start(k)
    at = {k: (-1, time.monotonic()) for k in range(WORKERS)}
    while running:
        for k, (process, reader) in list(running.items()):
            lost = ""
            try:
                while reader.poll(0.02):
                    message = reader.recv()
                    if message[0] == "start":
                        at[k] = (message[1], time.monotonic())
                    elif message[0] == "done":
                        process.join()
                        del running[k]
                        break
                    else:
                        queues[k].remove(message[1])
                        codes[message[2]] = codes.get(message[2], 0) + 1
                        faults += [message[3]] if message[3] else []
            except EOFError:
                process.join()
                lost = f"{at[k][0]}: the process ended with {process.exitcode}"
            if k in running and not lost and time.monotonic() - at[k][1] > SLOWEST:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                lost = f"{at[k][0]}: longer than {SLOWEST:g} s"
            if lost:
                faults.append(lost)
                queues[k] = [n for n in queues[k] if n != at[k][0]]
                shutil.rmtree(worlds[k])
                shutil.copytree(worlds[1 - k], worlds[k], ignore=shutil.ignore_patterns("fifo.npy"))
                os.mkfifo(worlds[k] / "fifo.npy")
                at[k] = (-1, time.monotonic())
                start(k)
    with capsys.disabled():
        print(f"\n{len(numbers)} cases in {time.monotonic() - begin:.0f} s: {codes}, {len(faults)} faults")
        for fault in faults:
            print(fault)
    assert faults == []
