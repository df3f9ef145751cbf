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
import re
import shutil
import signal
import time
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from tests.sde_diffusion.security.fuzz_cases import case, world

CASES = int(os.environ.get("SDEDIFF_FUZZ_CASES", "3000"))
SLOWEST = 120.0  # seconds that a case may take, on a machine under load
WORKERS = 2
# Words of Python, numpy and torch that mean nothing to a user.
RAW = re.compile(
    r"has no attribute|not subscriptable|must be real number|Overflow when|allow_pickle|enforce fail|"
    r"unsupported operand|unexpected keyword|positional argument|argument '\w+' must be|NoneType|list indices|"
    r"not iterable|unhashable|Traceback|object of type|cannot unpack|could not convert string|invalid literal|"
    r"_ArrayMemoryError|errno"
)


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
    if code == 0 and args[0] == "sample" and Path("out/samples.npz").is_file():  # and not in shards
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
