"""Lines for people: whole words in a terminal, whole lines in a pipe, and no line written into a bar."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from sde_diffusion.files.text import printable
from sde_diffusion.parallel.launcher import rank


class Muted(NamedTuple):
    """The muted outputs: the lines of stdout, and the progress on stderr."""

    lines: bool = False
    progress: bool = False


_muted: ContextVar[Muted] = ContextVar("muted", default=Muted())  # noqa: B039 (immutable)


@contextmanager
def muted(*, lines: bool, progress: bool) -> Iterator[None]:
    """A context without lines on stdout, or without progress on stderr; warnings and errors are always printed.

    >>> with muted(lines=True, progress=False):
    ...     echo("not printed")
    """
    token = _muted.set(Muted(lines, progress))
    try:
        yield
    finally:
        _muted.reset(token)


def shows_progress() -> bool:
    """Whether bars, and lines in their place, are printed."""
    return not _muted.get().progress and rank() == 0


def stdout() -> Console:
    """The console of stdout."""
    return Console(quiet=_muted.get().lines or rank() > 0)


def stderr() -> Console:
    """The console of stderr: one for all, so that a warning is printed above a bar and not into it."""
    return _stderr() if shows_progress() else _without_bars()


@cache
def _stderr() -> Console:
    return Console(stderr=True)


@cache
def _without_bars() -> Console:
    """A console that every bar takes for a file."""
    return Console(stderr=True, force_terminal=False)


def lines_of(text: str, width: int) -> str:
    """A line broken between words alone; a longer word, such as a path, stands on a line of its own.

    >>> print(lines_of("mean -0.3885, std 0.7522", 14))
    mean -0.3885,
      std 0.7522
    """
    wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
    return "\n".join(wrapped) if len(text) > width else text


def say(text: str, style: str) -> None:
    """Write one line to stderr, coloured in a terminal, and there wrapped between words.

    Of several processes that a launcher started, each writes its errors, in red, and the first everything else.
    """
    if rank() > 0 and style != "red":
        return
    console, text = stderr(), printable(text)
    console.print(Text(lines_of(text, console.width) if console.is_terminal else text, style=style), soft_wrap=True)


def echo(text: str, command: str = "", *, err: bool = False, console: Console | None = None) -> None:
    """Write lines to stdout, or stderr; in a terminal they are wrapped between words.

    Of several processes that a launcher started, the first alone writes.

    Args:
        text: the lines; what a terminal would obey is escaped.
        command: what ends the last one; in a terminal it stands on a line of its own where it does not fit.
        err: to stderr.
        console: instead of that of stdout or stderr.

    >>> echo("trained in 3 s; next:", "sdediff sample")
    trained in 3 s; next: sdediff sample
    """
    if rank() > 0 or (console is None and err and not shows_progress()):
        return
    console = console or (stderr() if err else stdout())
    text, command = printable(text), printable(command)
    whole = f"{text} {command}" if command else text
    if console.is_terminal:
        apart = command and max(map(len, whole.split("\n"))) > console.width
        shown = [lines_of(line, console.width) for line in (text if apart else whole).split("\n")]
        whole = "\n".join([*shown, command] if apart else shown)
    console.print(Text(whole), soft_wrap=True)
