"""Options that several commands share, and options generated from a list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, get_type_hints

import typer

if TYPE_CHECKING:
    from sde_diffusion.sampling.guidance_settings import GuidanceSettings
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
DeviceOption = Annotated[
    str | None,
    option("--device", "cpu, cuda, or auto: cuda if there is one.", "auto", values=("auto", "cpu", "cuda")),
]
LabelOption = Annotated[
    str | None,
    option(
        "--label",
        "Class, by name or number, of a model trained with --labels; several (3,5) or all are taken in turn.",
        "no class",
        "Guidance",
    ),
]
GuidanceOption = Annotated[
    float | None,
    option(
        "--guidance",
        "Scale of classifier-free guidance to --label; 1 is the conditional model alone. Doubles the NFE.",
        "1",
        "Guidance",
    ),
]
IntervalOption = Annotated[
    str | None,
    option("--guidance-interval", "LOW,HIGH: guide only where LOW < sigma/alpha <= HIGH.", "everywhere", "Guidance"),
]
RescaleOption = Annotated[
    float | None,
    option(
        "--rescale",
        "phi, 0 to 1: bring guided outputs back to the standard deviation of the conditional ones.",
        "0",
        "Guidance",
    ),
]
ApgOption = Annotated[bool, typer.Option("--apg", help="Adaptive projected guidance.", rich_help_panel="Guidance")]
EtaParallelOption = Annotated[
    float | None,
    option("--eta-parallel", "Weight of the parallel part of the update with --apg.", "0", "Guidance"),
]
PlusPlusOption = Annotated[
    bool,
    typer.Option(
        "--cfg++",
        help="CFG++: renoise with the unconditional prediction; --guidance is its lambda, 0 to 1. For ddim and ddpm.",
        rich_help_panel="Guidance",
    ),
]
AutoguideOption = Annotated[
    Path | None,
    option(
        "--autoguide",
        "RUN of a weaker model on the same data and process: guide away from it, not from the model without a label.",
        panel="Guidance",
    ),
]
DataDirOption = Annotated[Path | None, option("--data-dir", DATA_DIR)]


class GuidanceArguments(NamedTuple):
    """The options of guidance as they were typed; ``with_guidance`` gives a command all of them at once."""

    label: LabelOption = None
    guidance: GuidanceOption = None
    guidance_interval: IntervalOption = None
    rescale: RescaleOption = None
    apg: ApgOption = False
    eta_parallel: EtaParallelOption = None
    autoguide: AutoguideOption = None
    plus_plus: PlusPlusOption = False

    def given(self) -> list[str]:
        """The names of those that were typed."""
        return [name for name, value in self._asdict().items() if value is not None and value is not False]

    def words(self) -> list[str]:
        """The words of a command line that give them again.

        >>> GuidanceArguments(label="3", guidance=2.0, apg=True).words()
        ['--label 3', '--guidance 2.0', '--apg']
        """
        given = {
            f"--{'cfg++' if name == 'plus_plus' else name.replace('_', '-')}": getattr(self, name)
            for name in self.given()
        }
        return [name if value is True else f"{name} {value}" for name, value in given.items()]

    def labels(self, stored: StoredModel) -> list[int] | None:
        """The classes that --label names, by name or number; all of them are those of the model's network.

        Raises:
            ValueError: a class that the data do not have.
        """
        from sde_diffusion.data.labels import class_index
        from solvers.errors import InputError

        if self.label is None:
            return None
        classes = (stored.model["network"]["settings"] or {}).get("classes")
        if classes is None and stored.given is not None:
            network = stored.given().network
            classes = (getattr(network, "settings", None) or {}).get("classes")
        if self.label == "all":
            if classes is None:
                raise InputError(
                    "--label all is of a model that says how many classes it has, and this one does not; a run says so "
                    "if it was trained with --labels"
                )
            return list(range(classes))
        if classes is None:  # refused where the model is made, unless its network takes any label
            return whole_numbers(self.label, "--label")
        return [class_index(name.strip(), stored.data.get("class_names"), classes) for name in self.label.split(",")]

    def settings(self) -> GuidanceSettings:
        """What they amount to, with the weaker model found on disk.

        Raises:
            ValueError: values out of range or in conflict.
        """
        from sde_diffusion.sampling.guidance_settings import GuidanceSettings
        from sde_diffusion.storage.locate import find_model
        from solvers.errors import InputError

        if self.eta_parallel is not None and not self.apg:
            raise InputError("--eta-parallel is of projected guidance; add --apg")
        return GuidanceSettings(
            scale=1.0 if self.guidance is None else self.guidance,
            interval=self._interval(),
            rescale=self.rescale,
            eta_parallel=(self.eta_parallel or 0.0) if self.apg else None,
            guide=None if self.autoguide is None else find_model(self.autoguide),
            plus_plus=self.plus_plus,
        )

    def _interval(self) -> tuple[float, float] | None:
        from solvers.errors import InputError

        if self.guidance_interval is None:
            return None
        try:
            low, high = (float(end) for end in self.guidance_interval.split(","))
        except ValueError:
            raise InputError(
                "--guidance-interval takes 2 numbers separated by a comma, such as 0.2,5; got "
                f"'{self.guidance_interval}'"
            ) from None
        return low, high


def with_guidance(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of guidance; it gets them as ``asked``, one ``GuidanceArguments``.

    >>> @with_guidance
    ... def command(n: int = 1, *, asked: GuidanceArguments):
    ...     print(n, asked.given())
    >>> command(n=2, label="3", guidance=None, apg=True)
    2 ['label', 'apg']
    """

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        typed = {name: values.pop(name) for name in GuidanceArguments._fields if name in values}
        return command(**values, asked=GuidanceArguments(**typed))

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "asked"]
    hints = get_type_hints(GuidanceArguments, include_extras=True)
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=GuidanceArguments._field_defaults[name],
            annotation=hints[name],
        )
        for name in GuidanceArguments._fields
    ]
    parameters = [*own, *added]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


class Listed(Protocol):
    """The attributes of an option that ``listed_options`` reads; ``TrainOption`` has them."""

    @property
    def name(self) -> str:
        """The option's key."""

    @property
    def kind(self) -> Any:
        """int, float, str, bool or list[float]."""

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
    >>> @listed_options({"Training": TRAINING[:2], "Network": NETWORK[:2]})
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
                place[listed.name] = value
            return command(**values, settings=settings)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        added = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    o.kind | None,
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
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        from solvers.errors import InputError  # imported here because it imports torch

        raise InputError(f"{name} takes whole numbers separated by commas, such as 5,10,20; got '{text}'") from None


def model_at(run: Path | str | None, model: str | None) -> StoredModel:
    """The model named by RUN or by --model.

    Raises:
        ValueError: both were given.
    """
    from sde_diffusion.storage.locate import find_model
    from solvers.errors import InputError

    if model is None:
        return find_model(run)
    if run is not None:
        raise InputError(f"give RUN or --model, not both; got {run} and --model {model}")
    from sde_diffusion.interop.model_spec import given_model

    return given_model(model)
