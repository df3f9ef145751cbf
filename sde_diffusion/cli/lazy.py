"""Lazy commands: a command's module is imported when it runs, not for the overview, ``--version`` or completion."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from inspect import getdoc
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand

from sde_diffusion.cli.errors import Guarded
from sde_diffusion.cli.output import with_output

PRINTING = ("solvers", "inspect", "config")  # commands that print what they are asked for and write nothing

LINE = "sde_diffusion.line"


class LazyCommands(MutableMapping[str, Any]):
    """A mapping from names to commands; looking up a name imports its module.

    Args:
        modules: module names by command name. Each module has a function of the command's name, whose docstring is the
            help text, and optionally ``EXAMPLES``, which are appended to it.

    >>> commands = LazyCommands({"solvers": "sde_diffusion.cli.commands.solvers"})
    >>> list(commands), commands["solvers"].name
    (['solvers'], 'solvers')
    """

    def __init__(self, modules: dict[str, str]) -> None:
        self._modules = dict(modules)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module = import_module(self._modules[name])
            self._made[name] = command_of(name, getattr(module, name), getattr(module, "EXAMPLES", None))
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._modules.setdefault(name, "")
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._modules[name]
        self._made.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def command_of(name: str, function: Any, examples: str | None) -> Any:
    """The command that runs a function; its unwrapped docstring is the help text."""
    paragraphs = (getdoc(function) or "").split("\n\n")
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name=name, help=unwrapped, epilog=examples)(with_output(function, quiet=name not in PRINTING))
    return typer.main.get_command(app)


class LazyGroup(Guarded):
    """A group of commands whose overview does not import them.

    Attributes:
        modules: the module and the first sentence of the help, by command name.
    """

    modules: dict[str, tuple[str, str]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": LazyCommands({n: m for n, (m, _) in self.modules.items()})})
        self._overview = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the line as it was typed, for the reports that say how they were made."""
        ctx.meta[LINE] = shlex.join(["sdediff", *args])
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the overview."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; in an overview, a stand-in with its name and first sentence."""
        if self._overview and cmd_name in self.modules:
            return TyperCommand(cmd_name, help=self.modules[cmd_name][1])
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview."""
        self._overview = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._overview = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands whose names begin with the incomplete text."""
        self._overview = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._overview = False
