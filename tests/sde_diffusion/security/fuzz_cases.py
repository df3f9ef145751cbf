"""The cases of the fuzz test: a small world of runs, records, references and data, and what is done to it.

A case is a number: the commands, the odd values and the edits follow from it. The options are those that the program
has, so that a new one is tested without a word here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.storage.tuned_solver import Tuned, save_tuned
from solvers import SOLVERS

words = str.split
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
    "distill": words("distill run --steps 1 --batch-size 4 --data x.npy --out out"),
}
GUIDED = words("sample classes --label 1 --guidance 2 --n 2 --nfe 4 --out out")
INPAINT = words("restore inpaint mask.png --run bundled --mask mask.png --n 1 --nfe 2 --out out")
FIGURES = words("schedule forward reverse score trajectories film")
# Options that would be minutes of work; torch's compiler waits for its own processes for ever in a forked one.
COSTLY = {"--compile", "--tune", "--minutes", "--budget", "--processes", "--nproc-per-node", "--help"}


def options_of(command: str) -> dict[str, bool]:
    """The options of a command, whichever it has, and whether each takes no value."""
    found = get_command(app).get_command(None, command)  # type: ignore[attr-defined, arg-type]
    named = {name: p for p in found.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}
    costly = COSTLY | ({"--nfe"} if command == "tune" else set())
    return {name: p.is_flag for name, p in sorted(named.items()) if name not in costly}


GOOD = {
    "--solver": ["heun", "ddpm", "rk45", "pc", "tuned"],
    "--grid": ["karras", "1,0.5,0"],
    "--features": ["pca", "pixels"],
    "--sde": ["vp", "ve", "flow", "ddpm", "vp,edm"],
    "--method": ["replacement", "dps", "pigdm"],
    "--mask": ["mask.png", "small.png"],
    "--model": ["own.py:Mine", "own.py:model", "bad.py:X", "diffusers:images", "bundled"],
    "--label": ["0", "1", "all", "0,2", "cat"],
    "--autoguide": ["run", "classes", "bundled", "x.npy"],
    "--guidance": ["1", "3", "0.5"],
    "--guidance-interval": ["0.2,2", "2,0.2"],
    "--multipliers": ["1", "1,2", "0", "1,x"],
    "--layout": ["channels-first", "channels-last"],
    "--normalize": ["none", "range", "standard"],
}


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
        "def model():\n"
        "    import torch\n    from sde_diffusion import VPSDE, Gaussian\n"
        "    return Gaussian(torch.zeros(3), torch.ones(3), sde=VPSDE())\n"
    )
    Path("bad.py").write_text("1 / 0\n")
    Path("exit.py").write_text("raise SystemExit(0)\n")
    Path("options.toml").write_text("steps = 2\nlabels = false\n[network]\nwidth = 8\n")
    for args in (
        ["train", *FIRST["train"][1:-1], "run", "--ema-width", "0.1", "--snapshot-every", "1"],
        ["train", *FIRST["train"][1:-1], "classes", "--data", "x.npz", "--labels"],
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
    args = list(GUIDED if command == "sample" and rng.random() < 0.3 else FIRST[command])
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
            options = options_of(command)
            option = rng.choice([*options])
            args += [option] if options[option] else [option, rng.choice(GOOD.get(option, ODD) + ODD[:8])]
    return args
