"""What goes wrong becomes one sentence on stderr and exit code 2, for every command, here."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

EXPECTED = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError)


def say(text: str, style: str) -> None:
    """Write one line to stderr, coloured where that is a terminal."""
    Console(stderr=True, soft_wrap=True).print(Text(text, style=style))


class Guarded(TyperGroup):
    """Commands whose errors are sentences; SDEDIFF_TRACEBACK=1 shows where they arose."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", "yellow")
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own business
                raise
            except KeyboardInterrupt:
                say("stopped", "red")
                raise typer.Exit(130) from None
            except EXPECTED as error:
                if os.environ.get("SDEDIFF_TRACEBACK", "0") not in ("", "0"):
                    raise
                say(f"error: {sentence(error)}", "red")
                raise typer.Exit(2) from None


def sentence(error: BaseException) -> str:
    """The message of an error on one line.

    >>> sentence(OSError(28, "could not save step-000500: No space left on device"))
    'could not save step-000500: No space left on device'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[Errno \d+\] ", "", text)
