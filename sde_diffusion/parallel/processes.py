"""The processes that a launcher started, for commands that share their work.

``torchrun`` starts processes on the CPU or on GPUs, ``accelerate launch`` on GPUs. Both describe each process in its
environment (RANK, WORLD_SIZE), from which Hugging Face accelerate makes the process group and gives each process its
device. A program that no launcher started is one process and needs neither.

Objects travel over a gloo group of their own, because nccl carries tensors of GPUs alone.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from sde_diffusion.parallel.launcher import launched

T = TypeVar("T")
_FAREWELL = 0.1  # seconds that the threads of a process group may take to end
_PATIENCE = timedelta(days=7)  # a process waits this long for the work of the others


@dataclass(frozen=True)
class Processes:
    """The processes of a command.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        group: the group that carries objects; None for a single process.

    >>> alone = Processes.join("cpu")
    >>> alone.world, alone.main, alone.once(lambda: {"seed": 3}), alone.scatter(["work"]), alone.gather("result")
    (1, True, {'seed': 3}, 'work', ['result'])
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def join(cls, device: str = "auto") -> Processes:
        """Join the processes that the launcher started.

        Args:
            device: "cpu", "cuda" or "auto"; each process gets a GPU of its own where there are GPUs.
        """
        if launched() == 1 and not torch.distributed.is_initialized():
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=True) if device == "cpu" or not torch.cuda.is_available() else PartialState()
        if state.num_processes == 1:
            return cls()
        leave_at_exit()
        group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes, group)

    def __str__(self) -> str:
        """The end of a message about several processes; empty for one."""
        return "" if self.world == 1 else f" on {self.world} processes"

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier(self.group)

    def once(self, action: Callable[[], T]) -> T:
        """The result or the error of a function that the first process alone calls; the same on every process."""
        if self.world == 1:
            return action()
        held: list[tuple[Any, Exception | None]] = [(None, None)]
        if self.main:
            try:
                held = [(action(), None)]
            except Exception as error:
                held = [(None, error)]
        torch.distributed.broadcast_object_list(held, src=0, group=self.group)
        found, failed = held[0]
        if failed is not None:
            raise failed
        return found

    def scatter(self, values: list[Any] | None) -> Any:
        """An entry for each process, from the list of the first; others pass None."""
        if self.world == 1:
            assert values is not None
            return values[0]
        own: list[Any] = [None]
        torch.distributed.scatter_object_list(own, values, src=0, group=self.group)
        return own[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes on the first; an empty list on the others."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.main else None
        torch.distributed.gather_object(value, found, dst=0, group=self.group)
        return found or []


def leave_at_exit() -> None:
    """Leave the process group before the interpreter ends."""
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # A thread of gloo may still have to release the tensors of the last exchange, for which it needs the
        # interpreter; after the interpreter has ended it aborts the process. DistributedDataParallel keeps these
        # threads.
        time.sleep(_FAREWELL)
