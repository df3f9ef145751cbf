"""Training progress: a bar in a terminal, otherwise a line every 15 s."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from sde_diffusion.report import terminal

_BAR_SECONDS = 0.2
_LINE_SECONDS = 15.0
OTHERS = 68  # columns of a terminal that all but the bar take, with totals of five digits
WAITING = 0.05  # share of time spent on data from which it is shown


class Meter:
    """Shows step, loss, images/s, the time left, and the share of time spent waiting for data where it is large.

    Args:
        total: the number of the last step.
        done: steps done before, when a run is resumed.
        show: False for silence.

    >>> with Meter(100, show=False) as meter:
    ...     meter.update(1)
    """

    def __init__(self, total: int, done: int = 0, show: bool = True) -> None:
        self._total, self._done, self._show = total, done, show
        self._console = terminal.stderr()
        self._start = time.perf_counter()
        self._next = self._start + (_BAR_SECONDS if self._bar_fits else _LINE_SECONDS)
        self._figures: tuple[float, float, float] | None = None
        self._bar: Progress | None = None

    @property
    def _bar_fits(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> Meter:
        if self._show and self._bar_fits:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=min(40, max(5, self._console.width - OTHERS))),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(self._total)) + 1)),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=8)),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def measured(self, loss: float, images_per_second: float, data_wait: float) -> None:
        """Take the figures of the last steps."""
        self._figures = loss, images_per_second, data_wait

    def update(self, step: int) -> None:
        """Show that a step is done, if something was not shown just now."""
        now = time.perf_counter()
        if not self._show or (now < self._next and step < self._total):
            return
        if self._bar is not None:
            self._next = now + _BAR_SECONDS
            self._bar.update(self._task, completed=step, figures=self.figures())
            return
        self._next = now + _LINE_SECONDS
        left = (now - self._start) / max(step - self._done, 1) * (self._total - step)
        print(
            f"step {step}/{self._total}  {self.figures()}  {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def figures(self) -> str:
        """The figures in one line.

        >>> meter = Meter(10, show=False)
        >>> meter.measured(0.12345, 2100.0, 0.004)
        >>> meter.figures()
        'loss 0.1235  2,100 images/s'
        >>> meter.measured(0.12345, 2100.0, 0.4)
        >>> meter.figures()
        'loss 0.1235  2,100 images/s  data wait 40 %'
        """
        if self._figures is None:
            return ""
        loss, rate, wait = self._figures
        waiting = f"  data wait {100 * wait:.0f} %" if wait >= WAITING else ""
        return f"loss {loss:.4f}  {rate:,.0f} images/s{waiting}"
