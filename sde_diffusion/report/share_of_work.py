"""Progress by the share of the work that is done: a bar with the time left, in a terminal or a notebook.

A bar is shown after a second of work, so that a short run shows none, and disappears at the end. Within a bar that is
shown already there is no second one.
"""

from __future__ import annotations

import html
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sde_diffusion.report import terminal

_occupied = threading.Lock()  # held while a bar is on the screen
_DELAY, _PAUSE = 1.0, 0.1  # seconds before a bar is shown, and between two changes of it


class Report(Protocol):
    """Called with the share of the work done, 0 to 1, and perhaps with what is being done."""

    def __call__(self, share: float, text: str | None = None) -> None:
        """Report the share."""


@contextmanager
def share_bar(progress: bool | Callable[[float], None], text: str) -> Iterator[Report | None]:
    """The function that reports the share done; None if nothing is shown, so that nothing is computed for it.

    Args:
        progress: True for a bar where there is a terminal or a notebook, False for none, or a function that is called
            with every share.
        text: what is being done.

    >>> shares = []
    >>> with share_bar(shares.append, "sampling") as report:
    ...     report(0.5)
    >>> shares
    [0.5]
    """
    if callable(progress):
        called = progress
        yield lambda share, text=None: called(share)
        return
    console = terminal.stderr()
    screen = (console.is_terminal and not console.is_dumb_terminal) or console.is_jupyter
    if not progress or not screen or _occupied.locked() or not terminal.shows_progress():
        yield None
        return
    bar = _Bar(text, _Notebook() if console.is_jupyter else _Terminal())
    with _occupied:
        try:
            yield bar
        finally:
            bar.drawn.stop()


def part_of(
    report: Report | None, first: float, width: float, text: str | None = None
) -> Callable[[float], None] | None:
    """The function that reports a part's share, which begins at ``first`` and is ``width`` of the whole.

    >>> shares = []
    >>> part_of(lambda share, text: shares.append(share), 0.5, 0.25)(1.0)
    >>> shares
    [0.75]
    """
    return None if report is None else lambda share: report(first + width * share, text)


class Relay:
    """Passes shares on to a report that changes from job to job; it is None where nothing is reported.

    >>> relay, shares = Relay(), []
    >>> relay.part(0.0, 1.0) is None
    True
    >>> relay.report = shares.append
    >>> relay.part(0.5, 0.5)(0.5)
    >>> shares
    [0.75]
    """

    def __init__(self) -> None:
        self.report: Callable[[float], None] | None = None

    def part(self, first: float, width: float) -> Callable[[float], None] | None:
        """The function that reports the share of a part of the present job."""
        report = self.report
        return None if report is None else lambda share: report(first + width * share)


class _Bar:
    """Passes shares on to what draws them, not too often."""

    def __init__(self, text: str, drawn: _Terminal | _Notebook) -> None:
        self.text, self.drawn, self.next = text, drawn, time.perf_counter() + _DELAY
        self.begin = time.perf_counter()

    def __call__(self, share: float, text: str | None = None) -> None:
        self.text = text or self.text
        now = time.perf_counter()
        if now >= self.next:
            self.next = now + _PAUSE
            self.drawn.show(min(max(share, 0.0), 1.0), self.text, now - self.begin)


class _Terminal:
    """A bar of rich on stderr."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.refused = False

    def show(self, share: float, text: str, seconds: float) -> None:
        if self.refused:
            return
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=terminal.stderr(), transient=True)
            try:
                bar.start()
            except LiveError:  # a bar of the caller is on the screen
                self.refused = True
                return
            self.bar, self.task = bar, bar.add_task(text, total=1.0)
        self.bar.update(self.task, completed=share, description=text)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class _Notebook:
    """A bar of HTML below the cell; it needs no widgets."""

    def __init__(self) -> None:
        self.display: Any = importlib.import_module("IPython.display")
        self.handle: Any = None

    def show(self, share: float, text: str, seconds: float) -> None:
        shown = self.display.HTML(markup(share, text, seconds))
        if self.handle is None:
            self.handle = self.display.display(shown, display_id=True)
        else:
            self.handle.update(shown)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.update(self.display.HTML(""))


def markup(share: float, text: str, seconds: float) -> str:
    """The bar as HTML, with the time left.

    >>> markup(0.25, "sampling", 10.0)
    '<progress max="1" value="0.2500"></progress> sampling, 25 %, 30 s left'
    """
    left = f", {seconds * (1 - share) / share:.0f} s left" if share > 0 else ""
    return f'<progress max="1" value="{share:.4f}"></progress> {html.escape(text)}, {100 * share:.0f} %{left}'
