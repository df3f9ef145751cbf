"""Options that several commands share, and options generated from a list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from sde_diffusion.storage.checkpoint import StoredModel


def option(
    name: str, text: str, default: str | bool = False, panel: str | None = None, values: Iterable[str] = ()
) -> Any:
    """An option whose value is None unless given; the help shows its default, and the shell completes its values."""
    complete = completion_of(values) if values else None
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=default, autocompletion=complete)


def completion_of(values: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion function: the known values that begin with the text after its last comma.

    >>> completion_of(["ddim", "ddpm", "heun"])("heun,dd")
    ['heun,ddim', 'heun,ddpm']
    """
    known = list(values)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in known if value.startswith(last)]

    return complete


def complete_solver(incomplete: str) -> list[str]:
    """The names of solvers after the last comma; for commands that import the solvers late."""
    from solvers import SOLVERS

    return completion_of(SOLVERS)(incomplete)


def complete_data(incomplete: str) -> list[str]:
    """The names of data sets."""
    from sde_diffusion.data import NAMES

    return completion_of(NAMES)(incomplete)


def typed_line(ctx: typer.Context) -> str:
    """The command line as it was typed."""
    from sde_diffusion.cli.lazy import LINE

    return str(ctx.meta.get(LINE, "sdediff"))


HtmlOption = Annotated[
    Path | None,
    option(
        "--html",
        "Also write a report to an .html file that opens from disk: samples side by side, curves, time grids, table.",
    ),
]
DATA_DIR = "Folder with the files of mnist and cifar10."

RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="A run folder, one of its checkpoints, an exported .safetensors file, or the word bundled.",
        show_default="the latest in runs/, else the bundled model",
    ),
]
ModelOption = Annotated[
    str | None,
    option(
        "--model",
        "A model of your own instead of RUN: package.module:function or path/to/file.py:function, which returns a "
        "ScoreModel and is run; or diffusers:FOLDER.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    option("--precision", "Precision of the network: fp32, bf16 or fp16; the state stays in float32.", "fp32"),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the network, which takes a minute and pays off in long runs.")
]
DeviceOption = Annotated[
    str | None,
    option("--device", "cpu, cuda, or auto: cuda if there is one.", "auto", values=("auto", "cpu", "cuda")),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Number of samples per batch.")]
# The run of commands whose arguments are files.
RunOption = Annotated[Path | None, option("--run", "A run, checkpoint or exported file.", "the latest, else bundled")]
DataDirOption = Annotated[Path | None, option("--data-dir", DATA_DIR)]


class Listed(Protocol):
    """The attributes of an option that ``listed_options`` reads; ``TrainOption`` has them."""

    @property
    def name(self) -> str:
        """The option's key."""

    @property
    def kind(self) -> Any:
        """int, float, str, bool, list[float] (the option repeated) or list[int] (numbers with commas)."""

    @property
    def text(self) -> str:
        """The option's help text."""

    @property
    def usual(self) -> str:
        """The option's default, in words."""

    @property
    def table(self) -> str | None:
        """The TOML table of the option's key."""

    @property
    def flags(self) -> tuple[str, ...]:
        """The option's spellings on the command line."""

    @property
    def values(self) -> tuple[str, ...]:
        """The names that the option takes, if it takes names."""


def listed_options(
    panels: Mapping[str, Sequence[Listed]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds listed options to a command, which receives the given ones as ``settings``.

    Args:
        panels: lists of options by their heading in the help.

    Returns:
        A decorator. ``settings`` has the form of a TOML file: options by name, those of a table in a dictionary.

    >>> from sde_diffusion.training.options import NETWORK, TRAINING
    >>> @listed_options({"Training": TRAINING[:2], "Network": (NETWORK[0], NETWORK[2])})
    ... def command(*, settings):
    ...     print(settings)
    >>> command(steps=3, batch_size=None, network_name=None, network_width=8)
    {'steps': 3, 'network': {'width': 8}}
    """
    found = {f"{o.table}_{o.name}" if o.table else o.name: (panel, o) for panel, list_ in panels.items() for o in list_}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            settings: dict[str, Any] = {}
            for key, (_, listed) in found.items():
                value = values.pop(key)
                if value is None or value == []:
                    continue
                place = settings.setdefault(listed.table, {}) if listed.table else settings
                place[listed.name] = numbers(value, listed.flags[0]) if listed.kind == list[int] else value
            return command(**values, settings=settings)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        added = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    str | None if o.kind == list[int] else o.kind | None,
                    typer.Option(
                        *o.flags,
                        help=o.text,
                        rich_help_panel=panel,
                        show_default=o.usual,
                        autocompletion=completion_of(o.values) if o.values else None,
                    ),
                ],
            )
            for key, (panel, o) in found.items()
        ]
        parameters = [*own, *added]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def typed(ctx: typer.Context, *names: str) -> list[str]:
    """The options of these parameters that stand on the command line, as they are spelt in the help."""
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    found = [(name, ctx.get_parameter_source(name)) for name in names]
    return [flags[name] for name, source in found if source is not None and source.name == "COMMANDLINE"]


def refuse(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        ValueError: one of them stands on the command line.
    """
    if idle := typed(ctx, *names):
        from solvers.errors import InputError

        raise InputError(f"{', '.join(idle)} would have no effect: {why}")


def whole_numbers(text: str, name: str) -> list[int]:
    """Whole numbers separated by commas, each once.

    >>> whole_numbers("5,10,5", "--nfe")
    [5, 10]
    """
    return list(dict.fromkeys(numbers(text, name)))


def numbers(text: str, name: str) -> list[int]:
    """Whole numbers separated by commas.

    >>> numbers("1,2,2", "--multipliers")
    [1, 2, 2]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        from solvers.errors import InputError  # imported here because it imports torch

        raise InputError(f"{name} takes whole numbers separated by commas, such as 5,10,20; got '{text}'") from None


def model_at(run: Path | str | None, model: str | None, labelled: bool = False) -> StoredModel:
    """The model named by RUN or by --model.

    Args:
        run: a run or file, or None for the latest run or the bundled model.
        model: a model of the user's own.
        labelled: whether the bundled model is the one with labels, which is said in a line.

    Raises:
        ValueError: both were given.
    """
    from sde_diffusion.storage.locate import LABELLED, find_model
    from solvers.errors import InputError

    if model is None:
        found = find_model(run, labelled=labelled)
        if labelled and found.path == LABELLED:
            from sde_diffusion.cli.errors import say

            say("the bundled network of digits with labels, bundled-labelled", "dim")
        return found
    if run is not None:
        raise InputError(f"give RUN or --model, not both; got {run} and --model {model}")
    from sde_diffusion.interop.model_spec import given_model

    return given_model(model)
