"""Exit of the program on errors: one line and exit code 2 for user errors, a traceback and exit code 1 for bugs."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from sde_diffusion.parallel.launcher import rank
from sde_diffusion.report.terminal import echo as echo
from sde_diffusion.report.terminal import say as say

REPORT = (
    "this is a bug in sdediff: please report it to the project, with the command, the lines above and "
    "the output of sdediff --version"
)


class Guarded(TyperGroup):
    """A group of commands that prints each error as one line, with its traceback if SDEDIFF_TRACEBACK=1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", "yellow")
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):  # handled by typer
                raise
            except KeyboardInterrupt:
                say("stopped", "red")
                raise typer.Exit(130) from None
            except Exception as error:
                if os.environ.get("SDEDIFF_TRACEBACK", "0") not in ("", "0") or _is_usage(error):
                    raise
                if is_expected(error):
                    say(f"error{_where()}: {sentence(error)}", "red")
                    raise typer.Exit(2) from None
                if out_of_memory(error):
                    say(f"error: out of memory: {sentence(error)}; a smaller --batch-size needs less", "red")
                    raise typer.Exit(2) from None
                traceback.print_exception(error)
                say(f"error: {REPORT}", "red")
                raise typer.Exit(1) from None


def _where() -> str:
    """Which of several processes has an error."""
    return f" in process {rank()}" if rank() > 0 else ""


def _is_usage(error: Exception) -> bool:
    """Whether the parser of the command line prints the error itself."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


def is_expected(error: Exception) -> bool:
    """Whether a user can mend the error."""
    from solvers.errors import SdediffError  # imported here because it imports torch

    return isinstance(error, (SdediffError, OSError))


def out_of_memory(error: Exception) -> bool:
    """Whether memory of the machine or of the accelerator ran out."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def sentence(error: BaseException) -> str:
    """The message of an error on one line.

    >>> sentence(OSError(28, "could not save step-000500: No space left on device"))
    'could not save step-000500: No space left on device'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[Errno \d+\] ", "", text)
