"""A pool over the processes of a command: the first process hands out jobs, all work, results come back in order.

The first process runs the command; the others load the same model, enter the pool and work until the first leaves it
(as in ``MPICommExecutor`` of mpi4py). A job is cut without regard to the number of processes, so every job runs on the
same rows with the same kernels whoever does it, and results have the same bits for any number of processes of equal
kind and equal number of threads. The first process alone decides what comes next, so that a clock or a rounding cannot
lead processes apart.

An error in a job is raised by ``map`` in the first process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any

from sde_diffusion.parallel.processes import Processes

_STOP = "stop"


class _Failure:
    """An error that travels as a result."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Pool:
    """Shares jobs over processes. Use as a context manager.

    Args:
        work: functions by name, the same on every process. Arguments and results cross between processes, so they
            hold tensors of the CPU only.
        processes: the processes; this one alone by default.

    >>> with Pool({"square": lambda k: k**2}) as pool:
    ...     assert pool is not None  # None on the processes that only work: the command has ended there
    ...     print(list(pool.map("square", [(1,), (2,), (3,)])))
    [1, 4, 9]
    """

    def __init__(self, work: Mapping[str, Callable[..., Any]], processes: Processes | None = None) -> None:
        self.processes = processes or Processes()
        self._work = work

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.processes.world

    def __enter__(self) -> Pool | None:
        self.processes.wait()  # nothing is written before every process has checked what it was given
        if self.processes.main:
            return self
        while (message := self.processes.scatter(None)) != _STOP:
            self.processes.gather(None if message is None else self._attempt(*message))
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interrupt the launcher ends the others, which may be in the middle of a job.
        regular = kind is None or issubclass(kind, (Exception, GeneratorExit))
        if self.world > 1 and self.processes.main and regular:
            self.processes.scatter([_STOP] * self.world)

    def map(self, name: str, jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results of a function for each job, in the order of the jobs; a job holds the arguments.

        Raises:
            Exception: that of the first job that failed.
        """
        if self.world == 1:
            for job in jobs:
                yield self._work[name](*job)
            return
        left = iter(jobs)
        while some := list(islice(left, self.world)):
            if len(some) == 1:  # a job alone is faster here than on its way
                yield self._work[name](*some[0])
                return
            messages: list[Any] = [(name, job) for job in some]
            mine = self.processes.scatter(messages + [None] * (self.world - len(some)))
            results = self.processes.gather(self._attempt(*mine))
            for result in results[: len(some)]:
                if isinstance(result, _Failure):
                    raise result.error
                yield result

    def _attempt(self, name: str, job: tuple[Any, ...]) -> Any:
        try:
            return self._work[name](*job)
        except Exception as error:
            return _Failure(error)
