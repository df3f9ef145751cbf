"""Stopping at the right moment: SIGINT and SIGTERM wait for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them.

    A second one interrupts at once.

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
            # None: a handler that was not set from Python cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if old is None else old)


def finish(caught: list[int]) -> None:
    """Do what the first collected signal asked for.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: on SIGTERM, with status 143 = 128 + 15 as a shell reports it.
    """
    if caught and caught[0] == signal.SIGINT:
        raise KeyboardInterrupt
    if caught:
        raise SystemExit(128 + caught[0])
