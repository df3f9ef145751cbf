"""Deferred SIGINT and SIGTERM: a training run stops after the current step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending the process.

    A second signal interrupts immediately.

    Outside the main thread, where Python does not allow handlers, nothing is changed. Signals that
    are ignored (nohup) stay ignored.

    >>> with deferred() as caught:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> caught == [signal.SIGTERM]
    True
    """
    caught: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.getsignal(s) for s in _CAUGHT}
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield caught
    finally:
        for number, old in before.items():
            # None: Python cannot restore a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if old is None else old)


class StopVote:
    """Whether to stop before the next step, the same step in all processes.

    The processes synchronise about once a second, after a common number of updates.

    Args:
        agree: function that returns the largest of each value over all processes; None for a single process.
        caught: from ``deferred``; every process ends with the same signal in it.

    >>> stop = StopVote(None, caught := [])
    >>> stop.reached(1)
    False
    >>> caught.append(signal.SIGTERM)
    >>> stop.reached(2)
    True
    """

    def __init__(self, agree: Callable[..., list[float]] | None, caught: list[int]) -> None:
        self._agree, self._caught = agree, caught
        self._next: int | None = None
        self._last = (0, time.perf_counter())

    def reached(self, step: int) -> bool:
        """Whether a signal was received; called before every step."""
        if self._agree is None:
            return bool(self._caught)
        if self._next is not None and step < self._next:
            return False
        now = time.perf_counter()
        pace = (now - self._last[1]) / max(step - self._last[0], 1)
        number, slowest = self._agree(float(self._caught[0]) if self._caught else 0.0, pace)
        self._next = step + (1 if self._next is None else max(1, int(1 / slowest)))
        self._last = step, now
        if number:
            self._caught[:] = [int(number)]
        return bool(number)


def finish(caught: list[int]) -> None:
    """Act on the first collected signal.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: on SIGTERM, with status 143 = 128 + 15 as a shell reports it.
    """
    if caught and caught[0] == signal.SIGINT:
        raise KeyboardInterrupt
    if caught:
        raise SystemExit(128 + caught[0])
