from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

# One thread: the tensors are small, the workers run side by side, and sums then have one order.
torch.set_num_threads(1)
# What commands print does not depend on the terminal that started pytest.
os.environ.update(OMP_NUM_THREADS="1", NO_COLOR="1", TERM="dumb", COLUMNS="120")
for name in ("FORCE_COLOR", "PY_COLORS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a directory of its own: none finds or leaves ``runs/`` elsewhere."""
    monkeypatch.chdir(tmp_path)


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def launch() -> Callable[[int, Callable[[], Any]], list[Any]]:
    """Runs a function in several processes that find the environment of a launcher; what each returns, or its error.

    The processes are forked, because importing torch in each takes longer than most tests.
    """
    if not hasattr(os, "fork"):
        pytest.skip("the processes are forked")

    def run(world: int, job: Callable[[], Any]) -> list[Any]:
        context, port, readers, processes = get_context("fork"), _port(), [], []

        def call(rank: int, writer: Any) -> None:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCH_CPP_LOG_LEVEL="ERROR")
            from accelerate.state import PartialState

            PartialState._reset_state()  # of a test before
            try:
                found: Any = job()
            except Exception as error:
                found = error
            from sde_diffusion.parallel.processes import _leave

            _leave()
            writer.send_bytes(pickle.dumps(found))  # by value: a pipe would send tensors as shared memory

        for rank in range(world):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=call, args=(rank, writer))
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        found = [pickle.loads(reader.recv_bytes()) if reader.poll(120) else TimeoutError() for reader in readers]
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        return found

    return run
